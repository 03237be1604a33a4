# SPDX-License-Identifier: Apache-2.0
"""The embedded engine's stages are killed under load: every stream continues with the tokens of an undisturbed run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import Ran
from stages import Stage, free_base_port, started, wait_until_ready

pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(900)

STREAMS = 12
TOKENS = 60
READY_S = 240
BACK_S = 300
"""Seconds that a stage may take to return, on a busy machine."""
LIVELY = {"initializer_range": 0.5}
"""Random weights this large make a model that does not repeat itself."""


@pytest.fixture(scope="module")
def split(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, zpptool: Callable[..., Ran]
) -> Path:
    out = tmp_path_factory.mktemp("split") / "stages"
    assert zpptool("split", tiny_model("llama", layers=6, **LIVELY), "--num-stages", 3, "-o", out).code == 0
    return out


@contextmanager
def pipeline(
    split: Path, logs: Path, *options: object
) -> Iterator[tuple[list[Stage], httpx.Client, list[list[object]]]]:
    base = free_base_port(5)
    commands: list[list[object]] = [
        [split / f"stage_{stage}", "--base-port", base, "--port", base + 4, "--engine", "transformers", *options]
        for stage in range(3)
    ]
    url = f"http://127.0.0.1:{base + 4}"
    with started(logs, commands) as stages, httpx.Client(base_url=url, timeout=BACK_S, trust_env=False) as client:
        wait_until_ready(url, stages, READY_S)
        yield stages, client, commands


def stream(client: httpx.Client, number: int) -> list[int]:
    """The token ids of one streamed answer, greedy or seeded."""
    body = {
        "prompt": [2 + number, 50, 60 + number, 7],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": number % 2,
        "seed": number,
        "stream": True,
        "return_token_ids": True,
    }
    tokens: list[int] = []
    with client.stream("POST", "/v1/completions", json=body) as lines:
        assert lines.status_code == httpx.codes.OK
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                tokens += event["choices"][0].get("token_ids") or []
    assert len(tokens) == TOKENS
    return tokens


@dataclass
class Running:
    """A pipeline that the tests of this module share, and the answers of an undisturbed run."""

    stages: list[Stage]
    client: httpx.Client
    commands: list[list[object]]
    logs: Path
    quiet: list[list[int]] = field(default_factory=list)

    def answers(self, disturb: Callable[[], None]) -> list[list[int]]:
        """The answers of many streams that are disturbed soon after they have begun."""
        with ThreadPoolExecutor(STREAMS) as pool:
            answers = [pool.submit(stream, self.client, number) for number in range(STREAMS)]
            time.sleep(0.3)
            disturb()
            return [answer.result(BACK_S) for answer in answers]


@pytest.fixture(scope="module")
def running(split: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    logs = tmp_path_factory.mktemp("logs")
    with pipeline(split, logs, "--recovery-deadline", BACK_S) as (stages, client, commands):
        made = Running(stages, client, commands, logs)
        made.quiet = [stream(client, number) for number in range(STREAMS)]
        yield made


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_workers_killed_under_load_change_no_token_and_fail_no_request(running: Running, lost: tuple[int, ...]) -> None:
    """Their commands restart them."""
    before = running.stages[0].text().count("recovered: the ring is whole again")

    def kill() -> None:
        for stage in lost:
            running.stages[stage].worker().kill()

    assert running.answers(kill) == running.quiet
    assert running.stages[0].text().count("recovered: the ring is whole again") == before + 1


def test_a_restarted_head_finds_its_stages_loaded(running: Running) -> None:
    head = next(child for child in running.stages[0].look() if any(word.endswith(".head") for word in child.cmdline()))
    workers = [stage.worker().pid for stage in running.stages]
    loads = [stage.text().count("loading layers") for stage in running.stages]
    head.kill()
    head.wait(10)
    wait_until_ready(str(running.client.base_url), running.stages, BACK_S)
    assert [stream(running.client, number) for number in (0, 1)] == running.quiet[:2]
    assert [stage.worker().pid for stage in running.stages] == workers
    assert [stage.text().count("loading layers") for stage in running.stages] == loads


def test_a_killed_command_may_be_repeated(running: Running) -> None:
    def kill() -> None:
        processes = running.stages[2].look()
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)
        running.stages[2] = Stage(running.logs / "stage-2-again.log", *running.commands[2])

    assert running.answers(kill) == running.quiet


def test_a_stage_that_never_returns_ends_the_pipeline_by_name(split: Path, tmp_path: Path) -> None:
    with pipeline(split, tmp_path, "--recovery-deadline", 2) as (stages, client, _), ThreadPoolExecutor(1) as pool:
        pending = pool.submit(
            client.post, "/v1/completions", json={"prompt": [5], "max_tokens": 500, "ignore_eos": True}
        )
        time.sleep(0.3)
        for process in stages[1].look():
            process.kill()
        answer = pending.result(30)
        assert answer.status_code >= 500
        assert "stage 1 has not come back in 2 s" in answer.text
        assert stages[0].wait(20) == 6
        assert "stage 1 has not come back in 2 s" in stages[0].text()
