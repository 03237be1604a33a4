# SPDX-License-Identifier: Apache-2.0
"""Every kind of content part that a chat message may have, in a form that no model takes or that is broken."""

from __future__ import annotations

from typing import Any

import httpx

WAV = "UklGRiwAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQgAAAAAAAAAAAAAAA=="
TINY_GIF = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
BROKEN_PARTS: dict[str, dict[str, Any]] = {
    "a broken image": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    "no base64": {"type": "image_url", "image_url": {"url": "data:image/png;base64,***"}},
    "half a GIF": {"type": "image_url", "image_url": {"url": TINY_GIF}},
    "a file": {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}},
    "a server that does not answer": {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}},
    "no URL": {"type": "image_url", "image_url": {"url": "nowhere"}},
    "no image": {"type": "image_url"},
    "a video": {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
    "a sound": {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{WAV}"}},
    "input audio": {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}},
    "an embedding of an image": {"type": "image_embeds", "image_embeds": "AAAA"},
    "an embedding of a prompt": {"type": "prompt_embeds", "prompt_embeds": "AAAA"},
    "an unknown part": {"type": "hologram", "hologram": "x"},
}


def refuses(client: httpx.Client, content: Any) -> str:
    """The reason for which a message is refused with 400."""
    answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
    assert answer.status_code == httpx.codes.BAD_REQUEST, f"{answer.status_code}: {answer.text[:500]}"
    reason: str = answer.json()["error"]["message"]
    assert reason
    return reason
