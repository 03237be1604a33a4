# SPDX-License-Identifier: Apache-2.0
"""Real vLLM, whose stages are killed under load: no request fails, and every answer is that of a quiet run.

In float32, so that what is in a batch beside a sequence does not change its tokens.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapters import write_adapter
from stages import free_base_port, started, wait_until_ready

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.timeout(1500)]

RANGES = ("0-10", "10-20", "20-30")
READY_S = 600
BACK_S = 600
"""How long a stage may take to import vLLM and load, on a busy machine."""
LOGPROB_TOLERANCE = 2e-3
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
}
PROMPT = "The capital of France is Paris. The capital of Spain is"
WISHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.8, "seed": 5},
    "truncated": {"temperature": 1.1, "seed": 6, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "n": {"temperature": 0.9, "seed": 7, "n": 3},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    "repetition": {"repetition_penalty": 1.4},
    "logprobs": {"logprobs": 3},
    "schema": {"structured_outputs": {"json": SCHEMA}, "temperature": 0.7, "seed": 8},
    "stop": {"stop": ["zebra"], "include_stop_str_in_output": True},
    "long": {"prompt": PROMPT * 20},
    "adapter": {"model": "tuned"},
    "adapter and seed": {"model": "tuned", "temperature": 0.9, "seed": 9},
}


seen: list[int] = []
"""One entry for each token that has come."""
MIDST = 8 * len(WISHES)


def ask(client: httpx.Client, wish: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of one completion, streamed where there is one choice only."""
    body = {
        "prompt": PROMPT, "max_tokens": 32, "temperature": 0, "ignore_eos": "structured_outputs" not in wish,
        "return_token_ids": True, **wish,
    }  # fmt: skip
    if body.get("n", 1) > 1:
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == httpx.codes.OK, answer.text
        return [_kept(choice) for choice in answer.json()["choices"]]
    choice: dict[str, Any] = {"token_ids": [], "text": "", "logprobs": []}
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as lines:
        assert lines.status_code == httpx.codes.OK
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                part = event["choices"][0]
                seen.extend(part.get("token_ids") or [])
                choice["token_ids"] += part.get("token_ids") or []
                choice["text"] += part["text"]
                choice["logprobs"] += (part.get("logprobs") or {}).get("token_logprobs") or []
                choice["finish_reason"] = part["finish_reason"]
    assert choice.get("finish_reason"), choice
    return [choice]


def _kept(choice: dict[str, Any]) -> dict[str, Any]:
    return {name: choice[name] for name in ("token_ids", "text", "finish_reason")}


def same(one: list[dict[str, Any]], other: list[dict[str, Any]], what: str) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert ours["token_ids"] == theirs["token_ids"] != [], what
        assert ours["text"] == theirs["text"], what
        assert ours["finish_reason"] == theirs["finish_reason"], what
        assert ours.get("logprobs", []) == pytest.approx(theirs.get("logprobs", []), abs=LOGPROB_TOLERANCE), what


def test_stages_killed_under_load_change_no_answer(real_model: Path, tmp_path: Path) -> None:
    """Each stage in turn, then two at once; their commands start them again."""
    tuned = write_adapter(tmp_path / "tuned", real_model, seed=0)
    base = free_base_port(5)
    words = (
        *("--model", real_model, "--ranges", *RANGES, "--dtype", "float32", "--base-port", base, "--port", base + 4),
        *(
            "--recovery-deadline",
            BACK_S,
            "--start-timeout",
            BACK_S,
            "--beat-timeout",
            BACK_S,
            "--",
            "--enforce-eager",
            "--max-model-len",
            "1024",
        ),
        *("--kv-cache-memory-bytes", "268435456", "--served-model-name", "m", "--max-num-batched-tokens", "128"),
        *("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={tuned}"),
    )
    commands = [("--stage-idx", stage, *words) for stage in range(3)]
    url = f"http://127.0.0.1:{base + 4}"
    with (
        started(tmp_path, commands) as stages,
        httpx.Client(base_url=url, timeout=BACK_S, trust_env=False) as client,
        ThreadPoolExecutor(len(WISHES)) as pool,
    ):
        wait_until_ready(url, stages, READY_S)
        quiet = dict(
            zip(WISHES, pool.map(lambda wish: ask(client, {"model": "m", **wish}), WISHES.values()), strict=True)
        )
        for lost in ((0,), (1,), (2,), (0, 2)):
            seen.clear()
            asked = [(name, pool.submit(ask, client, {"model": "m", **wish})) for name, wish in WISHES.items()]
            while len(seen) < MIDST:  # most are in the middle of their answers
                time.sleep(0.02)
            assert not all(answer.done() for _, answer in asked)
            for stage in lost:
                stages[stage].worker().kill()
            for name, answer in asked:
                same(answer.result(BACK_S), quiet[name], f"{name}, when {lost} was lost")
        assert stages[0].text().count("recovered: every stage knows the") == 4
        for stage in stages:
            assert stage.process.poll() is None
