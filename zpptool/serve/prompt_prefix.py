# SPDX-License-Identifier: Apache-2.0
"""The beginning of a request's prompt, as a key: requests with an equal key find each other's tokens in the prefix
cache of the pipeline that they share."""

from __future__ import annotations

import hashlib
import json
from typing import Any

PREFIX_CHARACTERS = 1024
"""Requests whose prompts agree in so many characters belong together; a system message is often as long."""
PARSED_BYTES = 256 << 10
"""A longer body is not parsed for this: it would hold up the event loop."""
_FIELDS = ("messages", "prompt", "input")


def prefix_key(body: bytes) -> bytes:
    """Return a digest of the beginning of a request's prompt; empty where it has none.

    Args:
        body: of the request; JSON with `messages`, `prompt` or `input`, or anything else.
    """
    if not body or len(body) > PARSED_BYTES:
        return b""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return b""
    if not isinstance(content, dict):
        return b""
    found = next((content[name] for name in _FIELDS if content.get(name)), None)
    if found is None:
        return b""
    beginning = f"{content.get('model', '')}\n{_beginning(found)}"
    return hashlib.blake2b(beginning.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _beginning(prompt: Any) -> str:
    """The first characters of a prompt: a text, token ids, or messages."""
    if isinstance(prompt, str):
        return prompt[:PREFIX_CHARACTERS]
    if isinstance(prompt, list):
        text = ""
        for each in prompt:
            text += each if isinstance(each, str) else json.dumps(each)
            text += " "
            if len(text) >= PREFIX_CHARACTERS:
                break
        return text[:PREFIX_CHARACTERS]
    return json.dumps(prompt)[:PREFIX_CHARACTERS]
