# SPDX-License-Identifier: Apache-2.0
"""vLLM's V2 model runner, for real: the unsplit engine and three stages, with Triton kernels interpreted on the CPU.

In float32, with small steps and a small cache, as in `test_vllm_features.py`, and with a small vocabulary, because an
interpreted kernel takes its time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("vllm")

from adapters import write_adapter
from answers import metric, same, together
from sides import Sides, both_sides
from test_vllm_recovery import Load, differences
from v2 import USED, v2_environment

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("triton") is None, reason="no triton: the V2 runner's kernels need it"),
]

TESTS = Path(__file__).resolve().parents[1]
ARGUMENTS = (
    "--enforce-eager", "--max-model-len", "512", "--max-num-batched-tokens", "64", "--max-num-seqs", "16",
    "--block-size", "32", "--num-gpu-blocks-override", "24", "--kv-cache-memory-bytes", str(64 << 20),
    "--enable-prefix-caching", "--enable-prompt-tokens-details", "--served-model-name", "m",
    "--enable-lora", "--max-lora-rank", "8",
    "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
)  # fmt: skip
OPTIONS = ("--recovery-deadline", "600", "--start-timeout", "600", "--beat-timeout", "300")
PROMPT = "The capital of France is Paris."
TOKENS = 16
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.8, "seed": 5},
    "truncated": {"temperature": 1.1, "seed": 6, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "n": {"temperature": 0.9, "seed": 7, "n": 3},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.4},
    "logprobs": {"logprobs": 3},
    "prompt logprobs": {"prompt": PROMPT * 5, "prompt_logprobs": 2},
    "echo": {"echo": True, "logprobs": 2},
    "bias": {"logit_bias": {"100": 4.0}},
    "allowed": {"allowed_token_ids": [30, 60, 90]},
    "bad words": {"bad_words": ["a", "e"]},
    "regex": {"structured_outputs": {"regex": "[a-z]{3}-[0-9]{4}"}, "temperature": 0.7, "seed": 8},
    "choice": {"structured_outputs": {"choice": ["red", "green"]}},
    "long": {"prompt": PROMPT * 8},
    "adapter": {"model": "tuned"},
    "adapter and seed": {"model": "tuned", "temperature": 0.9, "seed": 9},
}
DISTURBED = ("greedy", "seeded", "truncated", "n", "penalties", "logprobs", "regex", "long", "adapter and seed")
"""The requests under way when a stage is lost."""


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", hidden_size=128, intermediate_size=128, initializer_range=0.3)


@pytest.fixture(scope="module")
def sides(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    directory = tmp_path_factory.mktemp("v2")
    tuned = write_adapter(directory / "tuned", model, seed=0, strength=0.5)
    arguments = (*ARGUMENTS, "--lora-modules", f"tuned={tuned}")
    with both_sides(
        directory, model, ((0, 1), (1, 2), (2, 4)), arguments, v2_environment(), options=OPTIONS
    ) as running:
        for stage in running.stages:
            assert USED in stage.text()
        yield running


def body(**changes: Any) -> dict[str, Any]:
    return {
        "model": "m", "prompt": PROMPT, "temperature": 0, "max_tokens": TOKENS, "return_token_ids": True,
        "ignore_eos": "structured_outputs" not in changes, **changes,
    }  # fmt: skip


def choices(client: httpx.Client, request: dict[str, Any]) -> list[dict[str, Any]]:
    answer = client.post("/v1/completions", json=body(**request))
    assert answer.status_code == httpx.codes.OK, answer.text
    return answer.json()["choices"]


def test_every_feature_gives_the_answers_of_the_unsplit_engine(sides: Sides) -> None:
    """All at once, in batches of their own on each side."""
    with ThreadPoolExecutor(2 * len(REQUESTS)) as pool:
        asked = {
            name: [pool.submit(choices, client, request) for client in (sides.unsplit, sides.pipeline)]
            for name, request in REQUESTS.items()
        }
        for name, (unsplit, pipeline) in asked.items():
            same(unsplit.result(), pipeline.result(), name)
    [choice] = asked["regex"][1].result()
    assert len(choice["text"]) == 8
    assert asked["adapter"][1].result() != asked["greedy"][1].result()


def test_a_second_request_uses_the_first_ones_prefix(sides: Sides) -> None:
    request = body(prompt="In the beginning was a long sentence about rings. " * 3, cache_salt="one", max_tokens=4)
    for cached in (0, 128):
        unsplit, pipeline = sides.ask("/v1/completions", **request)
        same(unsplit["choices"], pipeline["choices"])
        for answer in (unsplit, pipeline):
            assert (answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0) == cached


def test_sequences_that_preempt_each_other(sides: Sides) -> None:
    """8 x (70 + 60) tokens need more than the cache's 23 blocks of 32."""
    requests = [body(prompt=f"Story {n}. {PROMPT} {PROMPT}", max_tokens=60) for n in range(8)]
    before = metric(sides.pipeline, "vllm:num_preemptions_total")
    with ThreadPoolExecutor(2) as pool:
        unsplit, pipeline = pool.map(
            lambda client: together(client, requests, at_once=8), (sides.unsplit, sides.pipeline)
        )
    assert metric(sides.pipeline, "vllm:num_preemptions_total") > before
    assert unsplit == pipeline


def test_stages_killed_under_load_change_no_answer(sides: Sides) -> None:
    """The middle stage, then both ends at once, in the middle of chunked prompts and of answers."""
    requests = {name: REQUESTS[name] for name in DISTURBED}
    with ThreadPoolExecutor(len(requests)) as pool:
        undisturbed = Load(sides.unsplit, pool, 40, requests).answers()
        for lost in ((1,), (0, 2)):
            load = Load(sides.pipeline, pool, 40, requests)
            load.wait_until_midst()
            for stage in lost:
                sides.stages[stage].worker().kill()
            assert differences(load.answers(), undisturbed) == []
    assert sides.stages[0].text().count("recovered: every stage knows the") >= 2
    same(*[choices(client, {}) for client in (sides.unsplit, sides.pipeline)])


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_stage_warms_up_as_on_a_gpu_without_its_neighbours(model: Path, stage: int) -> None:
    """vLLM's warm-up of V2 computes whole steps, which receive and send. (The last stage's samples with every feature,
    and needs kernels that the interpreter cannot run.)"""
    done = subprocess.run(
        [sys.executable, str(TESTS / "warm_up_alone.py"), str(model), str(stage)],
        env={**os.environ, **v2_environment()}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warm {'execute_model': 5, 'sample_tokens': 4}" in done.stdout
