# SPDX-License-Identifier: Apache-2.0
"""`run-batch` on vLLM: chats and completions over pipelines of its own, the same bytes for one stage and two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from batches import entries, sorted_bytes
from conftest import Ran

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(1200)]

LINES = 24
ENGINE = ("--", "--enforce-eager", "--max-model-len", 256, "--kv-cache-memory-bytes", 64 << 20, "--dtype", "bfloat16")


def write_requests(path: Path, model: Path) -> Path:
    lines = []
    for number in range(LINES):
        sampling = {"temperature": number % 2, "max_tokens": 12, "model": str(model)}
        completion = {"prompt": f"{number} is a number that", "ignore_eos": True, **sampling}
        chat = {"messages": [{"role": "user", "content": f"Say {number}."}], **sampling}
        url, body = (("chat/completions", chat), ("completions", completion))[number % 3 == 0]
        entry = {"custom_id": f"line-{number}", "method": "POST", "url": f"/v1/{url}", "body": body}
        lines.append(json.dumps(entry) + "\n")
    path.write_text("".join(lines))
    return path


def test_the_answers_are_the_same_for_one_stage_and_two(
    speaker: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    requests = write_requests(tmp_path / "in.jsonl", speaker)
    outputs = []
    for stages in (1, 2):
        out = tmp_path / f"out{stages}.jsonl"
        ran = zpptool(
            "run-batch", speaker, "--num-stages", stages, "--invariant", "--json", "-i", requests, "-o", out, *ENGINE,
            timeout_s=500,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        assert (ran.json["done"], ran.json["failed"]) == (LINES, 0)
        outputs.append(sorted_bytes(out))
    assert outputs[0] == outputs[1]


def test_a_batch_that_batches_freely_has_every_line_once(
    speaker: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    requests = write_requests(tmp_path / "in.jsonl", speaker)
    out = tmp_path / "out.jsonl"
    ran = zpptool(
        "run-batch", speaker, "--num-stages", 2, "--ordered", "--json", "-i", requests, "-o", out, *ENGINE,
        timeout_s=500,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert [entry["custom_id"] for entry in entries(out)] == [f"line-{number}" for number in range(LINES)]
