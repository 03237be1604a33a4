# SPDX-License-Identifier: Apache-2.0
"""A text model across stages refuses every other kind of content with 400 and a reason, and goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from content_parts import BROKEN_PARTS, refuses
from stages import completion, free_base_port, started, wait_until_ready
from vision import message

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(900)]

START_S = 600
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def test_a_text_model_refuses_all_but_text(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model("llama", hidden_size=128, intermediate_size=128)
    base = free_base_port(4)
    common = (
        *("--model", model, "--ranges", "0-2", "2-4", "--dtype", "float32", "--base-port", base, "--port", base + 3),
        *("--start-timeout", START_S, "--", "--enforce-eager", "--kv-cache-memory-bytes", 64 << 20),
        *("--chat-template", TEMPLATE),
    )
    url = f"http://127.0.0.1:{base + 3}"
    with (
        started(tmp_path, [("--stage-idx", stage, *common) for stage in range(2)]) as stages,
        httpx.Client(base_url=url, timeout=START_S, trust_env=False) as client,
    ):
        wait_until_ready(url, stages, START_S)
        for part in (*BROKEN_PARTS.values(), message(0)["content"][0]):
            refuses(client, [part, {"type": "text", "text": "x"}])
        assert completion(client, prompt="x", max_tokens=2)["finish_reason"]
