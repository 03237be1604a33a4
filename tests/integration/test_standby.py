# SPDX-License-Identifier: Apache-2.0
"""Spare processes replace what is lost: a stage and the head, of `serve` and of `run-stage`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

pytest.importorskip("transformers")

from tests.conftest import Ran
from tests.served import READY_S, Served, serving, wait_for
from tests.stages import free_base_port, started, wait_until_ready
from tests.streams import Streams

pytestmark = [pytest.mark.torch, pytest.mark.timeout(400)]

IS_READY = r"a spare process is ready \(pid (\d+)\)"


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", layers=6, max_position_embeddings=2048, initializer_range=0.5)


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("standby")
    options = ("--num-stages", 3, "--served-model-name", "tiny", "--standby", 1, "--log-dir", directory / "logs")
    with serving(directory, model, *options) as command:
        yield command


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=READY_S, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def undisturbed(client: httpx.Client) -> list[str]:
    return Streams(client).answers()


class Snapshot:
    """Some of a pipeline's status."""

    def __init__(self, client: httpx.Client) -> None:
        status = client.get("/pipeline/status").json()
        (self.pipeline,) = status["replicas"]
        self.pids = {f"stage {stage['stage']}": stage["pid"] for stage in status["stages"]}
        self.pids["head"] = (self.pipeline["head"] or {}).get("pid")
        self.failed = status["requests"]["failed"]


def wait_for_spare(served: Served, client: httpx.Client, former: int = 0) -> int:
    """The pid of the ready spare, once it is another process than `former`."""
    wait_for(lambda: Snapshot(client).pipeline["spares"] == 1 and logged_spares(served)[-1] != former)
    served.look()
    return logged_spares(served)[-1]


def logged_spares(served: Served) -> list[int]:
    return [0, *map(int, re.findall(IS_READY, served.text()))]


def test_a_spare_replaces_a_killed_stage_and_another_spare_is_started(
    served: Served, client: httpx.Client, undisturbed: list[str]
) -> None:
    spare, before = wait_for_spare(served, client), Snapshot(client)
    streams = Streams(client)
    wait_for(streams.begun)
    psutil.Process(before.pids["stage 1"]).kill()
    assert streams.answers() == undisturbed
    wait_for(lambda: client.get("/readyz").status_code == 200)
    after = Snapshot(client)
    assert after.pids == {**before.pids, "stage 1": spare}
    assert after.failed == 0
    assert f"pipeline: a spare process becomes stage 1 (pid {spare})" in served.text()
    assert wait_for_spare(served, client, former=spare) not in after.pids.values()
    assert Streams(client).answers() == undisturbed


def test_a_spare_that_is_killed_is_no_loss_and_is_replaced(served: Served, client: httpx.Client) -> None:
    spare, before = wait_for_spare(served, client), Snapshot(client)
    psutil.Process(spare).kill()
    wait_for_spare(served, client, former=spare)
    after = Snapshot(client)
    assert after.pids == before.pids
    assert after.pipeline["restarts"] == before.pipeline["restarts"]
    assert after.pipeline["recoveries"] == before.pipeline["recoveries"]


def test_a_spare_can_replace_the_head(served: Served, client: httpx.Client, undisturbed: list[str]) -> None:
    spare, before = wait_for_spare(served, client), Snapshot(client)
    psutil.Process(before.pids["head"]).kill()
    wait_for(lambda: "pipeline: a spare process becomes head" in served.text())
    wait_for(lambda: client.get("/readyz").status_code == 200)
    assert Snapshot(client).pids == {**before.pids, "head": spare}
    assert Streams(client).answers() == undisturbed


def test_a_spare_replaces_a_stage_in_a_planned_change_too(
    served: Served, client: httpx.Client, undisturbed: list[str], zpptool: Callable[..., Ran]
) -> None:
    """Stages leave one after the other: the spare replaces the first, and started processes replace the others."""
    spare, before = wait_for_spare(served, client), Snapshot(client)
    streams = Streams(client)
    wait_for(streams.begun)
    ran = zpptool("rollout", "--url", served.url, timeout_s=READY_S)
    assert ran.code == 0, ran.err
    assert streams.answers() == undisturbed
    after = Snapshot(client)
    assert after.pids["stage 0"] == spare
    assert {name for name in after.pids if after.pids[name] == before.pids[name]} == {"head"}
    assert after.failed == 0


def test_a_spare_does_not_outlive_the_command(served: Served, client: httpx.Client) -> None:
    wait_for_spare(served, client)
    served.process.kill()
    served.process.wait()
    assert served.left_behind() == []


def test_run_stage_has_spares_of_its_own(model: Path, tmp_path: Path, zpptool: Callable[..., Ran]) -> None:
    split, base = tmp_path / "stages", free_base_port(4)
    assert zpptool("split", model, "--num-stages", 2, "-o", split).code == 0
    options = ("--engine", "transformers", "--base-port", base, "--port", base + 3)
    commands = [(split / "stage_0", *options), (split / "stage_1", *options, "--standby", 1)]
    url = f"http://127.0.0.1:{base + 3}"
    with started(tmp_path, commands) as (first, second), httpx.Client(timeout=READY_S, trust_env=False) as client:
        wait_until_ready(url, (first, second), READY_S)

        def answer() -> str:
            body = {"prompt": "one two", "max_tokens": 20, "ignore_eos": True, "temperature": 0}
            text: str = client.post(f"{url}/v1/completions", json=body).json()["choices"][0]["text"]
            return text

        before = answer()
        wait_for(lambda: re.search(IS_READY, second.text()))
        second.worker().kill()
        wait_for(lambda: "a spare process becomes stage 1" in second.text())
        assert answer() == before
        wait_for(lambda: len(re.findall(IS_READY, second.text())) == 2)
        second.look()
        second.process.terminate()
        second.wait()
        assert second.left_behind() == []


def test_spares_are_for_a_pipeline_that_survives_a_loss(model: Path, zpptool: Callable[..., Ran]) -> None:
    for command in (("serve",), ("run-stage", "--stage-idx", 0)):
        ran = zpptool(*command, model, "--num-stages", 1, "--recovery-deadline", 0, "--standby", 1)
        assert ran.code == 2
        assert "--standby is for a pipeline that survives" in ran.err
