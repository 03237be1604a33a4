# SPDX-License-Identifier: Apache-2.0
"""A stage moves to another address while the pipeline answers: no stream notices, and the stage that receives from it
follows, also after a restart of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import Ran
from served import wait_for
from stages import Stage, free_base_port, started, wait_until_ready
from test_embedded_recovery import stream
from test_embedded_rollout import run_directory

from zpptool.config.plan import load_plan_file

pytest.importorskip("torch")

pytestmark = [pytest.mark.torch, pytest.mark.timeout(1200)]

STREAMS = 6
BACK_S = 300
ELSEWHERE = "127.0.0.2"
"""An address that every Linux has, and nothing of a pipeline at first."""
OF_ENGINE: dict[str, tuple[object, ...]] = {
    "transformers": (),
    "vllm": ("--", "--enforce-eager", "--max-model-len", 1024, "--kv-cache-memory-bytes", 64 << 20),
}


class Pipeline:
    """Three stages of a plan, and what is known of them."""

    def __init__(self, stages: list[Stage], client: httpx.Client, plan: Path, words: list[object]) -> None:
        self.stages, self.client, self.plan, self.words = stages, client, plan, words
        self.directory = run_directory(stages)
        self.quiet = [stream(client, number) for number in range(STREAMS)]

    def newcomer(self, stage: int, plan: Path, log: Path) -> Stage:
        """A stage that is started beforehand, from its own copy of the new plan."""
        return Stage(log, "--plan", plan, "--stage-idx", stage, *self.words)

    def still_whole(self) -> None:
        assert [stream(self.client, number) for number in (0, 1)] == self.quiet[:2]


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    sizes = {"hidden_size": 128, "intermediate_size": 128, "max_position_embeddings": 2048}
    return tiny_model("llama", layers=6, initializer_range=0.5, **sizes)


@contextmanager
def planned(
    model: Path, tmp_path: Path, zpptool: Callable[..., Ran], engine: str = "transformers"
) -> Iterator[Pipeline]:
    base, plan = free_base_port(5), tmp_path / "zpp.yaml"
    made = zpptool(
        "plan", model, "--num-stages", 3, "--base-port", base, "--api-port", base + 4, "--engine", engine,
        "--dtype", "float32", "-o", plan, *OF_ENGINE[engine],
    )  # fmt: skip
    assert made.code == 0, made.err
    own = ["--recovery-deadline", BACK_S, "--start-timeout", BACK_S, "--device", "cpu"]
    commands = [["--plan", plan, "--stage-idx", stage, *own] for stage in range(3)]
    url = f"http://127.0.0.1:{base + 4}"
    with started(tmp_path, commands) as stages, httpx.Client(base_url=url, timeout=BACK_S, trust_env=False) as client:
        wait_until_ready(url, stages, BACK_S)
        yield Pipeline(stages, client, plan, own)


@pytest.mark.parametrize(
    ("engine", "stage"),
    [
        pytest.param("transformers", 2, marks=pytest.mark.long),
        pytest.param("transformers", 1, marks=pytest.mark.long),
        pytest.param("vllm", 1, marks=[pytest.mark.long, pytest.mark.vllm]),
        pytest.param("vllm", 2, marks=[pytest.mark.long, pytest.mark.vllm]),
    ],
)
def test_a_stage_moves_under_load_and_its_receiver_follows(
    model: Path, tmp_path: Path, zpptool: Callable[..., Ran], engine: str, stage: int
) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm")
    with planned(model, tmp_path, zpptool, engine) as pipeline, ThreadPoolExecutor(STREAMS) as pool:
        before, digest = load_plan_file(pipeline.plan), load_plan_file(pipeline.plan).digest
        pids = [one.worker().pid for one in pipeline.stages]
        words = ["stage", "replace", str(stage), "--to", ELSEWHERE, "--plan", str(pipeline.plan)]
        moving = subprocess.Popen(
            [sys.executable, "-m", "zpptool", *words, "--run-dir", str(pipeline.directory)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert moving.stdout is not None
        wait_for(lambda: load_plan_file(pipeline.plan) != before)
        after = load_plan_file(pipeline.plan)
        assert after.digest == digest
        assert after.stages[stage].bind.startswith(f"tcp://{ELSEWHERE}:")
        asked = [pool.submit(stream, pipeline.client, number) for number in range(STREAMS)]
        newcomer = pipeline.newcomer(stage, pipeline.plan, tmp_path / "newcomer.log")
        try:
            told, _ = moving.communicate(timeout=BACK_S)
            assert moving.returncode == 0, told
            assert f"stage {stage} has moved to {after.stages[stage].bind}" in told
            assert f"--stage-idx {stage}" in told
            asked += [pool.submit(stream, pipeline.client, number) for number in range(STREAMS)]
            assert [answer.result(BACK_S) for answer in asked] == pipeline.quiet * 2
            assert pipeline.stages[stage].wait() == 0
            assert f"its place moves to {after.stages[stage].bind}, and it ends" in pipeline.stages[stage].text()
            assert "error:" not in pipeline.stages[stage].text()
            assert f"another stage {stage} is connected already" in newcomer.text()
            others = [place for place in range(3) if place != stage]
            assert [pipeline.stages[place].worker().pid for place in others] == [pids[place] for place in others]
            assert "planned: the ring is whole again" in pipeline.stages[0].text()
            status = json.loads(zpptool("status", "--run-dir", pipeline.directory, "--json").out)
            assert (status["planned"], status["recoveries"]) == (1, 0)
            assert status["stages"][stage]["pid"] == newcomer.worker().pid
            receiver = pipeline.stages[2] if stage == 1 else pipeline.stages[0]
            kind = ".worker" if stage == 1 else ".head"
            follower = next(one for one in receiver.look() if any(word.endswith(kind) for word in one.cmdline()))
            follower.kill()  # its next life looks for it where it is now
            time.sleep(1)
            wait_until_ready(str(pipeline.client.base_url), [newcomer, receiver], BACK_S)
            pipeline.still_whole()
        finally:
            newcomer.look()
            newcomer.process.terminate()
            newcomer.wait()
            assert newcomer.left_behind() == []


def test_what_cannot_be_moved_leaves_everything_as_it_is(
    model: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    with planned(model, tmp_path, zpptool) as pipeline:
        before = pipeline.plan.read_bytes()
        other = tmp_path / "other.yaml"
        assert zpptool("plan", model, "--num-stages", 3, "--engine", "transformers", "-o", other).code == 0

        def refused(*words: object) -> Ran:
            ran = zpptool("stage", "replace", *words, "--run-dir", pipeline.directory)
            assert ran.code != 0
            assert pipeline.plan.read_bytes() == before
            return ran

        assert "stage 0 cannot be moved" in refused(0, "--to", ELSEWHERE, "--plan", pipeline.plan).err
        assert "no stage 3" in refused(3, "--to", ELSEWHERE, "--plan", pipeline.plan).err
        assert "already" in refused(1, "--to", "127.0.0.1", "--plan", pipeline.plan).err
        assert "another one is named" in refused(1, "--to", ELSEWHERE, "--plan", other).err
        late = refused(1, "--to", ELSEWHERE, "--plan", pipeline.plan, "--wait", 1)
        assert late.code == 6
        assert "no other stage 1 has asked for the place in 1 s" in late.err
        assert "zpptool run-stage --plan" in late.out
        pipeline.still_whole()
        assert all(stage.process.poll() is None for stage in pipeline.stages)
