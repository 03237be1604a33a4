# SPDX-License-Identifier: Apache-2.0
"""`zpptool serve` loses stages under load: every stream continues with the same tokens, and no client gets an error. A
stage that never comes back ends the command with its reason."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("httpx")

import httpx

from tests.conftest import Ran
from tests.served import READY_S, Served, serving, wait_for
from tests.streams import Streams

pytestmark = [pytest.mark.torch, pytest.mark.timeout(400)]

BEAT_S = 6


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", layers=6, max_position_embeddings=2048, initializer_range=0.5)


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("serve-recovery")
    options = (
        "--num-stages", 3, "--served-model-name", "tiny", "--beat-timeout", BEAT_S, "--log-dir", directory / "logs",
    )  # fmt: skip
    with serving(directory, model, *options) as command:
        yield command


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=READY_S, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def undisturbed(client: httpx.Client) -> list[str]:
    return Streams(client).answers()


def signal_during_streams(served: Served, client: httpx.Client, number: signal.Signals, *victims: str) -> list[str]:
    """Send a signal to processes once all streams have begun, and wait for the recovery.

    Returns:
        the answers of the streams.
    """
    before = served.look()
    streams = Streams(client)
    wait_for(streams.begun)
    for victim in victims:
        before[victim].send_signal(number)
    wait_for(lambda: client.get("/readyz").status_code == 503)
    answers = streams.answers()
    wait_for(lambda: client.get("/readyz").status_code == 200)
    after = served.look()
    for name, process in before.items():
        assert process.is_running() == (name not in victims), name
        assert after[name].is_running(), name
    return answers


def test_two_stages_are_killed_one_after_the_other(
    served: Served, client: httpx.Client, undisturbed: list[str]
) -> None:
    assert signal_during_streams(served, client, signal.SIGKILL, "stage 1") == undisturbed
    assert signal_during_streams(served, client, signal.SIGKILL, "stage 0") == undisturbed
    status = client.get("/pipeline/status").json()
    assert status["requests"]["failed"] == 0
    (pipeline,) = status["replicas"]
    assert (pipeline["recoveries"], pipeline["restarts"], pipeline["epoch"]) == (2, 2, 3)
    assert pipeline["stall_s"] > 0
    assert pipeline["recomputed_tokens"] > 0
    metrics = client.get("/metrics").text
    assert re.search(r"^zpp:recoveries_total\{.*\} 2(\.0)?$", metrics, re.MULTILINE)
    assert float(re.findall(r"^zpp:recovery_stall_seconds_total\{.*\} (\S+)", metrics, re.MULTILINE)[0]) > 0
    assert "pipeline: stage 1 was killed by SIGKILL; it is started again in 0 s" in served.text()


def test_two_stages_are_killed_at_once_and_one_hangs(
    served: Served, client: httpx.Client, undisturbed: list[str]
) -> None:
    """A stopped stage does not end by itself: the ring reports that it hangs, and the supervisor kills it."""
    assert signal_during_streams(served, client, signal.SIGKILL, "stage 0", "stage 2") == undisturbed
    assert signal_during_streams(served, client, signal.SIGSTOP, "stage 1") == undisturbed
    assert client.get("/pipeline/status").json()["requests"]["failed"] == 0
    assert re.search(rf"stage 1 hangs and was killed: its main loop .* \(--beat-timeout {BEAT_S}\)", served.text())


def test_a_head_that_hangs_is_started_again_once(served: Served, client: httpx.Client, undisturbed: list[str]) -> None:
    """The new head is not killed for the silence of the old one."""
    served.look()["head"].send_signal(signal.SIGSTOP)
    wait_for(lambda: "head hangs and was killed" in served.text())
    wait_for(lambda: client.get("/readyz").status_code == 200)
    assert Streams(client).answers() == undisturbed
    assert served.text().count("head hangs and was killed") == 1


def test_a_stage_that_is_lost_while_draining_is_restarted(model: Path, tmp_path: Path) -> None:
    command = Served(tmp_path, model, "--num-stages", 2, "--drain-timeout", READY_S)
    try:
        command.until_ready()
        with httpx.Client(base_url=command.url, timeout=READY_S, trust_env=False) as client:
            undisturbed = Streams(client).answers()
            streams = Streams(client)
            wait_for(streams.begun)
            command.process.send_signal(signal.SIGINT)
            wait_for(lambda: "stopping, 8 requests under way" in command.text())
            command.look()["stage 1"].kill()
            assert streams.answers() == undisturbed
            command.look()
        assert command.process.wait(READY_S) == 130
        assert "stage 1 was killed by SIGKILL; it is started again in 0 s" in command.text()
        assert command.left_behind() == []
    finally:
        command.close()


def test_a_stage_that_cannot_come_back_ends_the_command_with_the_reason(
    model: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    stages = tmp_path / "stages"
    assert zpptool("split", model, "--num-stages", 2, "-o", stages).code == 0
    command = Served(tmp_path, "--pipeline-dir", stages, "--max-restarts", 1)
    try:
        command.until_ready()
        shutil.rmtree(stages / "stage_1")
        command.look()["stage 1"].kill()
        assert command.process.wait(READY_S) == 6
        assert re.search(
            r"the pipeline has failed 2 times in a row and is given up: stage 1 exited with", command.text()
        )
        assert "stage_1" in command.text()
        assert command.left_behind() == []
    finally:
        command.close()
