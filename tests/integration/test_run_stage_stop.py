# SPDX-License-Identifier: Apache-2.0
"""How `run-stage` stops: answers in progress end whole, within `--shutdown-timeout`, and later stages wait for them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("httpx")

import httpx

from tests.stages import END_S, Stage, free_base_port, started, wait_until_ready

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

READY_S = 120
TOKENS = 400
"""Far more than are answered before the signal; a tiny model answers them in a few seconds."""


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", layers=4, max_position_embeddings=65536)


@contextmanager
def pipeline(model: Path, logs: Path, shutdown_timeout_s: float) -> Iterator[tuple[list[Stage], httpx.Client]]:
    """Two stages and a client of their API."""
    base = free_base_port(4)
    url = f"http://127.0.0.1:{base + 3}"
    common = (
        "--total-stages", 2, "--engine", "transformers", "--base-port", base, "--port", base + 3,
        "--shutdown-timeout", shutdown_timeout_s,
    )  # fmt: skip
    with started(logs, [(model, "--stage-idx", stage, *common) for stage in (0, 1)]) as stages:
        wait_until_ready(url, stages, READY_S)
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            yield stages, client
        for stage in stages:
            stage.look()


def events_with_signal(
    client: httpx.Client, max_tokens: int, send: Callable[[], None]
) -> tuple[int, list[dict[str, object]], str]:
    """Stream a completion and call `send` after five chunks: the number of chunks, the errors, and the last line."""
    chunks, errors, last = 0, [], ""
    body = {"prompt": "x", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            last = line
            if "[DONE]" in line:
                continue
            event = json.loads(line.removeprefix("data: "))
            chunks += "choices" in event
            errors += [event["error"]] if "error" in event else []
            if chunks == 5 and send is not None:
                send()
    return chunks, errors, last


def test_a_stream_is_completed_although_every_stage_was_asked_to_stop(model: Path, tmp_path: Path) -> None:
    """As a service manager stops a pipeline: SIGTERM to all of it at once. New requests are refused."""
    with pipeline(model, tmp_path, 100) as (stages, client):
        refused: list[httpx.Response] = []

        def stop() -> None:
            for stage in stages:
                stage.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + END_S
            while not refused:
                assert time.monotonic() < deadline, stages[0].text()
                answer = httpx.get(f"{client.base_url}/health", trust_env=False, timeout=20)
                refused.extend([answer] if answer.status_code == 503 else [])

        chunks, errors, last = events_with_signal(client, TOKENS, stop)
        assert (chunks, errors, last) == (TOKENS, [], "data: [DONE]")
        assert refused[0].json()["error"]["code"] == "pipeline_stopping"
        assert [stage.wait() for stage in stages] == [130, 130]
    assert [process for stage in stages for process in stage.left_behind()] == []
    for stage in stages:
        assert "has stopped the run: the head has ended" in stage.text()


def test_a_stream_that_takes_longer_ends_with_an_error_and_the_ring_is_stopped(model: Path, tmp_path: Path) -> None:
    with pipeline(model, tmp_path, 1) as (stages, client):
        stop = stages[0].process.send_signal
        chunks, errors, last = events_with_signal(client, 60000, lambda: stop(signal.SIGTERM))
        assert 5 <= chunks < 60000
        assert [error["code"] for error in errors] == ["pipeline_stopping"]
        assert last == "data: [DONE]"
        assert [stage.wait() for stage in stages] == [130, 0]


def test_a_second_signal_does_not_wait(model: Path, tmp_path: Path) -> None:
    with pipeline(model, tmp_path, 1000) as (stages, _client):
        stages[1].process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + END_S
        while "computing until the pipeline stops" not in stages[1].text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
        assert stages[1].process.poll() is None
        stages[1].process.send_signal(signal.SIGINT)
        assert stages[1].wait() == 130
