# SPDX-License-Identifier: Apache-2.0
"""Planned changes of the embedded engine's pipelines under load: every stage process is replaced, and no stream is
affected."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import Ran
from served import READY_S, Served, wait_for
from stages import Stage
from test_embedded_recovery import STREAMS, Running, pipeline, stream

from zpptool.admin.status_client import find_status_paths, read_status
from zpptool.errors import ZppError

pytest.importorskip("torch")

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

BACK_S = 300
LIVELY = {"initializer_range": 0.5}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", layers=6, max_position_embeddings=2048, **LIVELY)


@pytest.fixture(scope="module")
def running(
    model: Path, tmp_path_factory: pytest.TempPathFactory, zpptool: Callable[..., Ran]
) -> Iterator[tuple[Running, Path]]:
    """Three `run-stage`, the answers of an undisturbed run, and the private directory of stage 0."""
    split, logs = tmp_path_factory.mktemp("split") / "stages", tmp_path_factory.mktemp("logs")
    assert zpptool("split", model, "--num-stages", 3, "-o", split).code == 0
    with pipeline(split, logs, "--recovery-deadline", BACK_S) as (stages, client, commands):
        made = Running(stages, client, commands, logs)
        made.quiet = [stream(client, number) for number in range(STREAMS)]
        yield made, run_directory(stages)


def run_directory(stages: list[Stage]) -> Path:
    """The directory of the status socket of these stages' head; other pipelines on this machine are ignored."""
    own = {process.pid for process in stages[0].look()}
    return next(path.parent for path in find_status_paths() if head_pid(path) in own)


def head_pid(path: Path) -> int | None:
    try:
        return read_status(path).head.pid
    except ZppError:  # of another pipeline, which has just ended
        return None


def pids(stages: list[Stage]) -> list[int]:
    return [stage.worker().pid for stage in stages]


def under_streams(running: Running, change: Callable[[], Ran]) -> tuple[list[list[int]], Ran]:
    """The answers of streams during a change that begins after some of them and ends before others."""
    with ThreadPoolExecutor(STREAMS + 1) as pool:
        earlier = [pool.submit(stream, running.client, number) for number in range(STREAMS)]
        time.sleep(0.3)
        changing = pool.submit(change)
        later = [pool.submit(stream, running.client, number) for number in range(STREAMS)]
        ran = changing.result(BACK_S)
        return [answer.result(BACK_S) for answer in (*earlier, *later)], ran


def test_a_rollout_under_load_changes_every_process_and_no_token(
    running: tuple[Running, Path], zpptool: Callable[..., Ran]
) -> None:
    made, directory = running
    before, counted = pids(made.stages), made.stages[0].text().count("recovered: the ring")
    answers, ran = under_streams(made, lambda: zpptool("rollout", "--run-dir", directory, timeout_s=BACK_S))
    assert ran.code == 0, ran.err
    assert answers == made.quiet * 2
    assert not set(before) & set(pids(made.stages))
    lines = ran.out.splitlines()
    back = [re.match(r"stage (\d) is back after \S+ s: \S+, pid (\d+)", line) for line in lines]
    assert [(int(one[1]), int(one[2])) for one in back if one] == list(enumerate(pids(made.stages)))
    assert lines[-1] == "every stage has come again"
    log = made.stages[0].text()
    assert log.count("recovered: the ring") == counted
    assert log.count("planned: the ring is whole again") == 3
    assert "stage 1 was asked to leave, to come again: zpptool rollout of" in log
    for stage in made.stages:
        assert stage.process.poll() is None
        assert "has left, as it was asked to; it is started again" in stage.text()
        assert "crashed" not in stage.text()
        assert "error:" not in stage.text()
    status = json.loads(zpptool("status", "--run-dir", directory, "--json").out)
    assert (status["planned"], status["recoveries"], status["phase"]) == (3, 0, "ready")


def test_ctrl_c_ends_a_rollout_after_the_stage_that_has_left(running: tuple[Running, Path]) -> None:
    made, directory = running
    before, whole = pids(made.stages), made.stages[0].text().count("planned: the ring is whole again")
    command = [sys.executable, "-m", "zpptool", "rollout", "--run-dir", str(directory)]
    rollout = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert rollout.stdout is not None
    assert rollout.stdout.readline().startswith("stage 0 (")
    rollout.send_signal(signal.SIGINT)
    _, err = rollout.communicate(timeout=30)
    assert rollout.returncode == 130
    assert "a stage that was asked to leave comes back" in err
    wait_for(lambda: made.stages[0].text().count("planned: the ring is whole again") == whole + 1)
    time.sleep(1.5)
    after = pids(made.stages)
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    assert stream(made.client, 3) == made.quiet[3]


def test_a_pipeline_that_does_not_recover_is_not_touched(
    model: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    split = tmp_path / "stages"
    assert zpptool("split", model, "--num-stages", 3, "-o", split).code == 0
    with pipeline(split, tmp_path, "--recovery-deadline", 0) as (stages, client, _):
        ran = zpptool("rollout", "--run-dir", run_directory(stages), "--json")
        assert ran.code == 2
        assert "--recovery-deadline 0" in json.loads(ran.out)["error"]["message"]
        assert len(stream(client, 1)) == 60
        assert all(stage.process.poll() is None for stage in stages)


@pytest.mark.long
def test_a_rollout_through_a_front(model: Path, tmp_path: Path, zpptool: Callable[..., Ran]) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o600)
    served = Served(tmp_path, model, "--num-stages", 3, "--served-model-name", "tiny", "--api-key-file", keys)
    try:
        served.until_ready()
        own = {"authorization": "Bearer secret"}
        with httpx.Client(base_url=served.url, timeout=READY_S, trust_env=False, headers=own) as client:
            path = "/pipeline/rollout"
            assert client.post(path, json={}, headers={"authorization": "Bearer other"}).status_code == 401
            assert client.post(path, content=b"{}").status_code == 415
            assert client.post(path, json={"what": 1}).status_code == 400
            assert client.post(path, json={"replica": "none"}).status_code == 404
            quiet = [stream(client, number) for number in range(4)]
            before = served.look()
            with ThreadPoolExecutor(4) as pool:
                answers = [pool.submit(stream, client, number) for number in range(4)]
                ran = zpptool("rollout", "--url", served.url, "--api-key", "secret", "--json", timeout_s=BACK_S)
                assert [answer.result(BACK_S) for answer in answers] == quiet
            assert ran.code == 0, ran.err
            outcome = json.loads(ran.out)
            assert [(stage["replica"], stage["stage"]) for stage in outcome["stages"]] == [
                ("pipeline", 0), ("pipeline", 1), ("pipeline", 2)
            ]  # fmt: skip
            wait_for(lambda: client.get("/readyz").status_code == 200)
            after = served.look()
            assert [after[f"stage {stage['stage']}"].pid for stage in outcome["stages"]] == [
                stage["pid"] for stage in outcome["stages"]
            ]
            for name, process in before.items():
                assert process.is_running() == (name == "head"), name
            status = client.get("/pipeline/status").json()
            assert status["requests"]["failed"] == 0
            (replica,) = status["replicas"]
            assert (replica["recoveries"], replica["planned"], replica["why"]) == (0, 3, None)
            assert "stage 1 has left, as it was asked to; it is started again in 0 s" in served.text()
    finally:
        served.close()
