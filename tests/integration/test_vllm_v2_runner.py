# SPDX-License-Identifier: Apache-2.0
"""vLLM's V2 model runner, for real: the unsplit engine and three stages, with Triton kernels interpreted on the CPU.

In float32, with small steps and a small cache, as in `test_vllm_features.py`, and with a small vocabulary, because an
interpreted kernel takes its time. The unsplit engine answers one request after the other: on a CPU, vLLM 0.32 adds an
adapter to rows that have none, and fails at prompt logprobs in a batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("vllm")

from adapters import write_adapter
from answers import metric, same
from stages import Stage, free_base_port, started, wait_until_ready
from test_vllm_recovery import Load, differences
from v2 import USED, v2_environment

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("triton") is None, reason="no triton: the V2 runner's kernels need it"),
]

TESTS = Path(__file__).resolve().parents[1]
RANGES = ("0-1", "1-2", "2-4")
READY_S = 800
ENGINE: dict[str, Any] = {
    "max_model_len": 256, "max_num_batched_tokens": 64, "max_num_seqs": 16, "block_size": 32, "dtype": "float32",
    "num_gpu_blocks_override": 16, "kv_cache_memory_bytes": 64 << 20, "max_lora_rank": 8,
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
}  # fmt: skip
SWITCHES = {"enforce_eager": True, "enable_prefix_caching": True, "enable_lora": True}
PROMPT = "The capital of France is Paris."
TOKENS = 8
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.8, "seed": 5},
    "truncated": {"temperature": 1.1, "seed": 6, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "n": {"temperature": 0.9, "seed": 7, "n": 3},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.4},
    "logprobs": {"logprobs": 3},
    "prompt logprobs": {"prompt": PROMPT * 5, "prompt_logprobs": 2},
    "bias": {"logit_bias": {"100": 4.0}},
    "allowed": {"allowed_token_ids": [30, 60, 90]},
    "bad words": {"bad_words": ["a", "e"]},
    "regex": {"structured_outputs": {"regex": "[a-z]{3}-[0-9]{4}"}, "temperature": 0.7, "seed": 8},
    "choice": {"structured_outputs": {"choice": ["red", "green"]}},
    "long": {"prompt": PROMPT * 6},
    "adapter": {"model": "tuned"},
    "adapter and seed": {"model": "tuned", "temperature": 0.9, "seed": 9},
}
CROWD = {f"story {n}": {"prompt": f"Story {n}. {PROMPT} {PROMPT}", "max_tokens": 32} for n in range(6)}
"""6 x (73 + 32) tokens need 24 blocks of 32, and the cache has 15."""
DISTURBED = ("greedy", "seeded", "n", "penalties", "logprobs", "regex", "long", "adapter and seed")
"""The requests under way when stages are lost."""
DISTURBED_TOKENS = 24


def body(request: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": "m", "prompt": PROMPT, "temperature": 0, "max_tokens": TOKENS,
        "ignore_eos": "structured_outputs" not in request, **request,
    }  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", hidden_size=128, intermediate_size=128, initializer_range=0.3)


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "tuned", model, seed=0, strength=0.5)


@pytest.fixture(scope="module")
def unsplit(model: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Any]]:
    """The unsplit V2 engine, at work: returns its answers to all requests."""
    directory = tmp_path_factory.mktemp("unsplit")
    files = {name: directory / f"{name}.json" for name in ("requests", "answers", "engine")}
    files["requests"].write_text(json.dumps({name: body(fields) for name, fields in {**REQUESTS, **CROWD}.items()}))
    files["engine"].write_text(json.dumps({**ENGINE, **SWITCHES}))
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "unsplit_answers.py"), str(model), str(adapter), *map(str, files.values())],
            stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1", **v2_environment()},
        )  # fmt: skip

    def answers() -> Any:
        process.wait(READY_S)
        assert files["answers"].exists(), log.read_text()[-3000:]
        assert USED in log.read_text()
        return json.loads(files["answers"].read_text())

    try:
        yield answers
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def stages(
    model: Path, adapter: Path, unsplit: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[Stage], httpx.Client]]:
    """Three stages with V2, and a client of them."""
    base = free_base_port(len(RANGES) + 2)
    port = base + len(RANGES) + 1
    words = [f"--{name.replace('_', '-')}={value if type(value) is not dict else json.dumps(value)}"
             for name, value in ENGINE.items() if name != "dtype"]  # fmt: skip
    switches = [f"--{name.replace('_', '-')}" for name in SWITCHES]
    common = (
        *("--model", model, "--ranges", *RANGES, "--dtype", "float32", "--base-port", base, "--port", port),
        *("--recovery-deadline", READY_S, "--start-timeout", READY_S, "--beat-timeout", READY_S, "--"),
        *(*words, *switches, "--served-model-name", "m", "--enable-prompt-tokens-details"),
        *("--lora-modules", f"tuned={adapter}"),
    )
    url = f"http://127.0.0.1:{port}"
    commands = [("--stage-idx", stage, *common) for stage in range(len(RANGES))]
    with ExitStack() as opened:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in v2_environment().items():
                patch.setenv(name, value)
            running = opened.enter_context(started(tmp_path_factory.mktemp("v2"), commands))
        client = opened.enter_context(httpx.Client(base_url=url, timeout=READY_S, trust_env=False))
        wait_until_ready(url, running, READY_S)
        assert all(USED in stage.text() for stage in running)
        yield running, client


def ask(client: httpx.Client, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of an answer, as the unsplit engine reports them."""
    answer = client.post("/v1/completions", json={**body(request), "return_token_ids": True})
    assert answer.status_code == httpx.codes.OK, answer.text
    return [
        {
            "token_ids": choice["token_ids"],
            "text": choice["text"],
            "logprobs": (choice["logprobs"] or {}).get("token_logprobs", []),
            "prompt_logprobs": [
                {token: entry["logprob"] for token, entry in (of_token or {}).items()}
                for of_token in choice["prompt_logprobs"] or ()
            ],
        }
        for choice in answer.json()["choices"]
    ]


def compare(client: httpx.Client, unsplit: dict[str, Any], requests: dict[str, dict[str, Any]]) -> None:
    """Send all requests at once, and compare each answer with the unsplit engine's."""
    with ThreadPoolExecutor(len(requests)) as pool:
        asked = {name: pool.submit(ask, client, request) for name, request in requests.items()}
        for name, answer in asked.items():
            same(unsplit[name], answer.result(), name)


def test_every_feature_gives_the_answers_of_the_unsplit_engine(
    stages: tuple[list[Stage], httpx.Client], unsplit: Callable[[], Any]
) -> None:
    answers = unsplit()
    compare(stages[1], answers, REQUESTS)
    assert len(answers["regex"][0]["text"]) == 8
    assert answers["adapter"] != answers["greedy"]
    assert len(answers["prompt logprobs"][0]["prompt_logprobs"]) > 128  # more than two steps


def test_sequences_that_preempt_each_other(
    stages: tuple[list[Stage], httpx.Client], unsplit: Callable[[], Any]
) -> None:
    _stages, client = stages
    before = metric(client, "vllm:num_preemptions_total")
    compare(client, unsplit(), CROWD)
    assert metric(client, "vllm:num_preemptions_total") > before


def test_a_second_request_uses_the_first_ones_prefix(stages: tuple[list[Stage], httpx.Client]) -> None:
    _stages, client = stages
    request = {**body({"prompt": PROMPT * 5, "cache_salt": "one"}), "max_tokens": 8}
    first, second = (client.post("/v1/completions", json=request).json() for _time in range(2))
    assert first["choices"][0]["text"] == second["choices"][0]["text"]
    assert [(answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0) for answer in (first, second)] == [
        0, 128,
    ]  # fmt: skip


def test_stages_killed_under_load_change_no_answer(stages: tuple[list[Stage], httpx.Client]) -> None:
    """The middle one and the last at once, in mid-prompt and mid-answer. (The long tests kill each in turn.)"""
    running, client = stages
    requests = {name: REQUESTS[name] for name in DISTURBED}
    with ThreadPoolExecutor(len(requests)) as pool:
        undisturbed = Load(client, pool, DISTURBED_TOKENS, requests).answers()
        load = Load(client, pool, DISTURBED_TOKENS, requests)
        load.wait_until_midst()
        for stage in (1, 2):
            running[stage].worker().kill()
        assert differences(load.answers(), undisturbed) == []
    assert "recovered: every stage knows the" in running[0].text()


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


@pytest.mark.long
def test_two_stages_give_the_unsplit_tokens(model: Path, monkeypatch: pytest.MonkeyPatch, zpptool: Any) -> None:
    for name, value in v2_environment().items():
        monkeypatch.setenv(name, value)
    done = zpptool(
        *("test-pipeline", model, "--ranges", "0-2", "2-4", "--engine", "vllm", "--json", "--batched"),
        *("--dtype", "float32", "--max-new-tokens", 16, "--", "--enforce-eager", "--max-model-len", 512),
        *("--kv-cache-memory-bytes", 64 << 20),
        timeout_s=800,
    )
    assert done.code == 0, done.err
    assert done.json["verdict"] == "identical"
