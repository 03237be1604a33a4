# SPDX-License-Identifier: Apache-2.0
"""The embedded engine's stages, killed under load: every stream goes on, and its tokens are those of a quiet run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import Ran
from stages import Stage, free_base_port, started, wait_until_ready

pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(600)

STREAMS = 12
TOKENS = 60
READY_S = 240
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
def pipeline(split: Path, logs: Path, *words: object) -> Iterator[tuple[list[Stage], httpx.Client, list[list[object]]]]:
    base = free_base_port(5)
    commands: list[list[object]] = [
        [split / f"stage_{stage}", "--base-port", base, "--port", base + 4, "--engine", "transformers", *words]
        for stage in range(3)
    ]
    url = f"http://127.0.0.1:{base + 4}"
    with started(logs, commands) as stages, httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
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


def test_workers_killed_under_load_change_no_token_and_fail_no_request(split: Path, tmp_path: Path) -> None:
    """First, middle and last, one after the other; their commands start them again."""
    with pipeline(split, tmp_path) as (stages, client, _), ThreadPoolExecutor(STREAMS) as pool:
        quiet = [stream(client, number) for number in range(STREAMS)]
        for stage in stages:
            asked = [pool.submit(stream, client, number) for number in range(STREAMS)]
            time.sleep(0.3)
            stage.worker().kill()
            assert [answer.result(240) for answer in asked] == quiet
        assert "recovered: the ring is whole again" in stages[0].text()


def test_a_command_that_is_killed_may_be_typed_again(split: Path, tmp_path: Path) -> None:
    with pipeline(split, tmp_path) as (stages, client, commands), ThreadPoolExecutor(STREAMS) as pool:
        quiet = [stream(client, number) for number in range(STREAMS)]
        asked = [pool.submit(stream, client, number) for number in range(STREAMS)]
        time.sleep(0.3)
        stages[2].look()
        stages[2].process.kill()
        stages[2].process.wait()
        time.sleep(1.0)  # its worker looks for its parent twice a second
        stages[2] = Stage(tmp_path / "again.log", *commands[2])
        assert [answer.result(240) for answer in asked] == quiet


def test_a_head_that_is_killed_finds_its_stages_loaded(split: Path, tmp_path: Path) -> None:
    with pipeline(split, tmp_path) as (stages, client, _):
        quiet = stream(client, 1)
        head = next(child for child in stages[0].look() if any(word.endswith(".head") for word in child.cmdline()))
        workers = [stage.worker().pid for stage in stages]
        head.kill()
        time.sleep(0.5)
        wait_until_ready(str(client.base_url), stages, READY_S)
        assert stream(client, 1) == quiet
        assert [stage.worker().pid for stage in stages] == workers
        for stage in stages:
            assert stage.text().count("loading layers") == 1


def test_a_stage_that_never_comes_back_ends_the_pipeline_by_name(split: Path, tmp_path: Path) -> None:
    with pipeline(split, tmp_path, "--recovery-deadline", 2) as (stages, client, _), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, "/v1/completions", json={"prompt": [5], "max_tokens": 500, "ignore_eos": True})
        time.sleep(0.3)
        for process in stages[1].look():
            process.kill()
        answer = asked.result(30)
        assert answer.status_code >= 500
        assert "stage 1 has not come back in 2 s" in answer.text
        assert stages[0].wait(20) == 6
        assert "stage 1 has not come back in 2 s" in stages[0].text()
