# SPDX-License-Identifier: Apache-2.0
"""Layers move between the stages of a running pipeline: streams are not affected, and a refused move changes
nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import Ran
from served import READY_S, Served, wait_for
from test_embedded_recovery import stream
from test_replace import BACK_S, STREAMS, planned

from zpptool.config.plan import load_plan_file

pytest.importorskip("torch")

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", layers=6, max_position_embeddings=2048, initializer_range=0.5)


def test_layers_move_under_load_and_no_token_changes(model: Path, tmp_path: Path, zpptool: Callable[..., Ran]) -> None:
    """0-2 2-4 4-6 become 0-1 1-4 4-6: two stages restart, the third is unchanged."""
    with planned(model, tmp_path, zpptool) as pipeline, ThreadPoolExecutor(STREAMS) as pool:
        before = load_plan_file(pipeline.plan)
        pids = [stage.worker().pid for stage in pipeline.stages]
        wanted = ("--ranges", "0-1", "1-4", "4-6", "--run-dir", pipeline.directory)
        assert "--plan" in zpptool("rebalance", *wanted).err  # the pipeline was started from a plan
        for wrong, message in [
            (("0-1", "1-6"), "2 ranges are given for 3 stages"),
            (("0-1", "2-4", "4-6"), "gap"),
            (("0-2", "2-4", "4-6"), "already"),
        ]:
            ran = zpptool("rebalance", "--ranges", *wrong, "--run-dir", pipeline.directory, "--plan", pipeline.plan)
            assert ran.code in (2, 3)
            assert message in ran.err or "1" in ran.err
            assert load_plan_file(pipeline.plan) == before
        assert [stage.worker().pid for stage in pipeline.stages] == pids
        answers = [pool.submit(stream, pipeline.client, number) for number in range(STREAMS)]
        time.sleep(0.3)
        ran = zpptool("rebalance", *wanted, "--plan", pipeline.plan, timeout_s=BACK_S)
        assert ran.code == 0, ran.err
        assert "the layers are now 0-1 1-4 4-6" in ran.out
        answers += [pool.submit(stream, pipeline.client, number) for number in range(STREAMS)]
        assert [answer.result(BACK_S) for answer in answers] == pipeline.quiet * 2
        now = [stage.worker().pid for stage in pipeline.stages]
        assert [old == new for old, new in zip(pids, now, strict=True)] == [False, False, True]
        status = json.loads(zpptool("status", "--run-dir", pipeline.directory, "--json").out)
        assert [stage["layers"] for stage in status["stages"]] == [[0, 1], [1, 4], [4, 6]]
        assert (status["planned"], status["recoveries"]) == (1, 0)
        assert "loading layers 1-4" in pipeline.stages[1].text()
        after = load_plan_file(pipeline.plan)
        assert [place.layers for place in after.stages] == ["0-1", "1-4", "4-6"]
        assert after.digest == before.digest
        pipeline.stages[1].worker().kill()  # it restarts with the same layers
        time.sleep(1)
        wait_for(lambda: "recovered: the ring is whole again" in pipeline.stages[0].text())
        pipeline.still_whole()
        assert pipeline.stages[1].text().count("loading layers 1-4") == 2


@pytest.mark.long
def test_a_front_forwards_a_move_and_stages_with_their_own_directories_are_refused(
    model: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    served = Served(tmp_path, model, "--num-stages", 2, "--served-model-name", "tiny")
    try:
        served.until_ready()
        with httpx.Client(base_url=served.url, timeout=READY_S, trust_env=False) as client:
            quiet = [stream(client, number) for number in range(3)]
            with ThreadPoolExecutor(3) as pool:
                answers = [pool.submit(stream, client, number) for number in range(3)]
                ran = zpptool("rebalance", "--ranges", "0-5", "5-6", "--url", served.url, "--json", timeout_s=BACK_S)
                assert [answer.result(BACK_S) for answer in answers] == quiet
            assert ran.code == 0, ran.err
            assert ran.json["done"] == "the layers are now 0-5 5-6"
            wait_for(lambda: client.get("/readyz").status_code == 200)
            status = client.get("/pipeline/status").json()
            assert [stage["layers"] for stage in status["stages"]] == [[0, 5], [5, 6]]
            assert status["requests"]["failed"] == 0
            assert stream(client, 0) == quiet[0]
            for process in served.look().values():
                process.kill()
            wait_for(lambda: client.get("/readyz").status_code != 200)
            wait_for(lambda: client.get("/readyz").status_code == 200)
            status = client.get("/pipeline/status").json()
            assert [stage["layers"] for stage in status["stages"]] == [[0, 5], [5, 6]]
            assert stream(client, 0) == quiet[0]
    finally:
        served.close()
    split = tmp_path / "stages"
    assert zpptool("split", model, "--num-stages", 2, "-o", split).code == 0
    again = tmp_path / "again"
    again.mkdir()
    served = Served(again, "--pipeline-dir", split)
    try:
        served.until_ready()
        ran = zpptool("rebalance", "--ranges", "0-5", "5-6", "--url", served.url)
        assert ran.code == 2
        assert "stage 0, 1 was started from its own directory" in ran.err
        assert "Split the model anew" in ran.err
    finally:
        served.close()
