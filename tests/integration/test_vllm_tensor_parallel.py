# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism inside stages, each with its own size: the unsplit engine's tokens, and a lost rank by name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import Ran
from stages import END_S, Stage, completion, free_base_port, started, wait_until_ready

from zpptool.config.engine_kind import TP_RANK

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
ENGINE_ARGUMENTS = ("--enforce-eager", "--kv-cache-memory-bytes", "67108864", "--max-model-len", "256")
READY_S = 1000


def test_stages_of_two_devices_and_of_one_give_the_unsplit_engines_tokens(
    tiny_model: Callable[..., Path], tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    """In float32, because the halves of a sum are added in another order; the unsplit engine is on one device. The
    timeline of the run contains all stages."""
    trace = tmp_path / "trace.json"
    before = shared_memory()
    done = zpptool(
        *("test-pipeline", tiny_model(layers=3, initializer_range=0.2, **WIDE), "--num-stages", 3, "--engine", "vllm"),
        *("--tensor-parallel-size", "2,1,2", "--batched", "--dtype", "float32", "--max-new-tokens", 16, "--json"),
        *("--trace", trace, "--start-timeout", READY_S),
        timeout_s=1400,
    )
    assert done.code == 0, done.err
    assert done.json["verdict"] == "identical"
    assert len({tuple(prompt["token_ids"]) for prompt in done.json["prompts"]}) == len(done.json["prompts"])
    steps = [event for event in json.loads(trace.read_text()) if event["name"] == "execute_and_sample"]
    assert {event["pid"] for event in steps} == {0, 1, 2, 3}
    assert shared_memory() <= before  # vLLM leaves two segments a stage


def shared_memory() -> set[str]:
    """The names of memory that the ranks of a stage share."""
    return {path.name for path in Path("/dev/shm").glob("*-tp:0-*")}


@pytest.mark.long
def test_a_rank_that_is_killed_ends_the_pipeline_and_is_named(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model, base = tiny_model(layers=3, initializer_range=0.2, **WIDE), free_base_port(4)
    options = ("--total-stages", 2, "--base-port", base, "--port", base + 3, "--recovery-deadline", 0)
    commands = [
        (model, "--stage-idx", stage, *options, "--tensor-parallel-size", size, "--", *ENGINE_ARGUMENTS)
        for stage, size in enumerate((1, 2))
    ]
    url = f"http://127.0.0.1:{base + 3}"
    with started(tmp_path, commands) as stages, httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        wait_until_ready(url, stages, READY_S)
        assert completion(client, prompt="Once", max_tokens=4)["finish_reason"] in ("length", "stop")
        rank_of(stages[1]).kill()
        assert [stage.wait(3 * END_S) for stage in stages] == [6, 6]
        assert "tensor-parallel rank 1 of stage 1 has ended (killed by signal 9)" in stages[1].text()
        assert "tensor-parallel rank 1 of stage 1 has ended" in stages[0].text()
        assert [process for stage in stages for process in stage.left_behind()] == []


def rank_of(stage: Stage) -> psutil.Process:
    """The process of the stage's rank 1."""
    return next(child for child in stage.look() if TP_RANK in child.cmdline())


@pytest.mark.long
def test_a_stage_that_loses_a_rank_within_a_step_starts_again_alone(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Its other rank waits for the lost one in the middle of a collective operation, so both are new afterwards. The
    answer goes on with the tokens of an undisturbed one, and no other stage is started again."""
    model, base = tiny_model(layers=3, initializer_range=0.2, **WIDE), free_base_port(4)
    options = ("--total-stages", 2, "--base-port", base, "--port", base + 3, "--recovery-deadline", READY_S)
    commands = [
        (
            *(model, "--stage-idx", stage, *options, "--tensor-parallel-size", size, "--dtype", "float32"),
            *("--", *ENGINE_ARGUMENTS),
        )
        for stage, size in enumerate((1, 2))
    ]
    url = f"http://127.0.0.1:{base + 3}"
    request = {"prompt": [5, 50, 60, 7], "max_tokens": 200, "ignore_eos": True, "return_token_ids": True}
    with started(tmp_path, commands) as stages, httpx.Client(base_url=url, timeout=READY_S, trust_env=False) as client:
        wait_until_ready(url, stages, READY_S)
        undisturbed = completion(client, **request)["token_ids"]
        first, second, rank = stages[0].worker(), stages[1].worker(), rank_of(stages[1])
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(completion, client, **request)
            time.sleep(0.3)
            assert not answer.done()
            rank.kill()
            assert answer.result(READY_S)["token_ids"] == undisturbed
        assert stages[0].worker() == first
        assert stages[1].worker() != second
        assert rank_of(stages[1]) != rank
        assert not second.is_running()
        assert "tensor-parallel rank 1 of stage 1 has ended (killed by signal 9)" in stages[1].text()
        assert "recovered: the ring is whole again" in stages[0].text()


@pytest.mark.long
def test_a_plan_with_two_ranks_and_one_gives_the_tokens_of_one_rank_a_stage(
    tiny_model: Callable[..., Path], tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    """The stages get their sizes from the plan alone; `validate` has accepted it, and refuses it with another size."""
    model, base = tiny_model(layers=3, initializer_range=0.2, **WIDE), free_base_port(4)
    answers = []
    for size in ("1", "2,1"):
        plan = tmp_path / f"zpp-{size}.yaml"
        planned = zpptool(
            *(
                "plan",
                model,
                "--num-stages",
                2,
                "--tensor-parallel-size",
                size,
                "--device",
                "cpu",
                "--dtype",
                "float32",
            ),
            *("--base-port", base, "--api-port", base + 3, "-o", plan, "--", *ENGINE_ARGUMENTS),
        )
        assert planned.code == 0, planned.err
        assert zpptool("validate", plan).code == 0
        commands = [("--plan", plan, "--stage-idx", stage, "--recovery-deadline", 0) for stage in range(2)]
        url = f"http://127.0.0.1:{base + 3}"
        with started(tmp_path, commands) as stages, httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            wait_until_ready(url, stages, READY_S)
            request = {"prompt": [5, 50, 60, 7], "max_tokens": 40, "ignore_eos": True, "return_token_ids": True}
            answers.append(completion(client, **request)["token_ids"])
            ranks = [[child for child in stage.look() if TP_RANK in child.cmdline()] for stage in stages]
            assert list(map(len, ranks)) == ([0, 0] if size == "1" else [1, 0])
    assert answers[0] == answers[1]
    plan.write_text(plan.read_text().replace("tensor_parallel_size: 2", "tensor_parallel_size: 3"))
    refused = zpptool("validate", plan)
    assert refused.code == 3
    assert "does not divide 4 attention heads" in refused.out
    assert "does not divide" in zpptool("run-stage", "--plan", plan, "--stage-idx", 0).err
