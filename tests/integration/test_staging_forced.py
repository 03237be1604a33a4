# SPDX-License-Identifier: Apache-2.0
"""Recovery with tensors that are staged through a simulated device, late by random times: no token is lost or wrong.

A stage of a pipeline is killed so, and the recovery and chaos suites are run so. `test_staging_epochs.py` is what `make
test` has of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, Ran
from staged import staged_environment
from test_embedded_recovery import BACK_S, LIVELY, pipeline, stream

pytest.importorskip("torch")

DELAY_S = 0.003
STREAMS = 6
SUITES = {
    "ring": ("tests/integration/test_ring_recovery.py", "tests/integration/test_ring_new_epoch.py"),
    "embedded": ("tests/integration/test_embedded_recovery.py",),
    "vllm": ("tests/integration/test_vllm_recovery.py",),
    "chaos": ("tests/chaos/test_chaos.py", "-k", "serve"),
}
SUITE_S = 1800


@pytest.mark.long
@pytest.mark.timeout(600)
def test_stages_that_stage_their_tensors_recover(
    tiny_model: Callable[..., Path], tmp_path: Path, zpptool: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tmp_path / "stages"
    assert zpptool("split", tiny_model("llama", layers=6, **LIVELY), "--num-stages", 3, "-o", split).code == 0
    for name, value in staged_environment(DELAY_S).items():
        monkeypatch.setenv(name, value)
    with (
        pipeline(split, tmp_path, "--recovery-deadline", BACK_S) as (stages, client, _),
        ThreadPoolExecutor(STREAMS) as pool,
    ):
        assert all("tensors are staged through a simulated device" in stage.text() for stage in stages)
        quiet = [stream(client, number) for number in range(STREAMS)]
        answers = [pool.submit(stream, client, number) for number in range(STREAMS)]
        time.sleep(0.3)
        stages[1].worker().kill()
        assert [answer.result(BACK_S) for answer in answers] == quiet
        assert "recovered: the ring is whole again" in stages[0].text()
        assert "due in epoch" not in "".join(stage.text() for stage in stages)


@pytest.mark.long
@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.timeout(SUITE_S + 60)
def test_a_recovery_suite_with_staging_forced(suite: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITES[suite]],
        cwd=ROOT, env={**os.environ, **staged_environment(DELAY_S)}, capture_output=True, text=True, timeout=SUITE_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20000:]
    assert "passed" in done.stdout
