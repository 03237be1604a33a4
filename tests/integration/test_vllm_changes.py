# SPDX-License-Identifier: Apache-2.0
"""Planned changes of real vLLM under load: no request fails, and every answer equals that of an undisturbed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import Ran
from stages import Stage
from test_embedded_rollout import run_directory
from test_vllm_recovery import BACK_S, REQUESTS, Load, differences, pipeline

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.timeout(1800)]

TOKENS = 96
LIMITS = ("--max-num-batched-tokens", "64", "--kv-cache-memory-bytes", 64 << 20)


def layers(directory: Path, zpptool: Callable[..., Ran]) -> list[list[int]]:
    return [stage["layers"] for stage in json.loads(zpptool("status", "--run-dir", directory, "--json").out)["stages"]]


def pids(stages: list[Stage]) -> list[int]:
    return [stage.worker().pid for stage in stages]


@pytest.mark.long
def test_a_rollout_and_a_rebalance_under_load_change_no_answer(
    speaker: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    """Each under greedy, seeded, penalised, structured and adapter requests in one batch. Layers move twice, there and
    back, and a stage that is killed in between restarts with the layers that it has then."""
    ranges = ("0-1", "1-2", "2-4")

    def under_load(client: httpx.Client, *command: object) -> list[str]:
        load = Load(client, pool, TOKENS)
        load.wait_until_midst()
        ran = zpptool(*command, "--run-dir", directory, timeout_s=BACK_S)
        assert ran.code == 0, ran.err
        return differences(load.answers(), undisturbed)

    with pipeline(tmp_path, speaker, ranges, *LIMITS) as (stages, client), ThreadPoolExecutor(len(REQUESTS)) as pool:
        directory = run_directory(stages)
        undisturbed = Load(client, pool, TOKENS).answers()
        found = {"nothing": differences(Load(client, pool, TOKENS).answers(), undisturbed)}
        before = pids(stages)
        found["rollout"] = under_load(client, "rollout")
        assert not set(before) & set(pids(stages))
        before = pids(stages)
        found["rebalance"] = under_load(client, "rebalance", "--ranges", "0-2", "2-3", "3-4")
        assert not set(before) & set(pids(stages))
        assert layers(directory, zpptool) == [[0, 2], [2, 3], [3, 4]]
        load = Load(client, pool, TOKENS)
        load.wait_until_midst()
        stages[0].worker().kill()
        found["a loss after that"] = differences(load.answers(), undisturbed)
        assert layers(directory, zpptool) == [[0, 2], [2, 3], [3, 4]]
        found["back"] = under_load(client, "rebalance", "--ranges", *ranges)
        assert layers(directory, zpptool) == [[0, 1], [1, 2], [2, 4]]
        assert not any(found.values()), f"different, by change: {json.dumps(found, indent=1)}"
        status = json.loads(zpptool("status", "--run-dir", directory, "--json").out)
        assert (status["planned"], status["recoveries"]) == (3 + 2, 1)
        for stage in stages:
            assert stage.process.poll() is None
