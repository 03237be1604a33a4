# SPDX-License-Identifier: Apache-2.0
"""vLLM's variable for the cores of its workers applies to stages, and only to processes that compute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zpptool.config.cpu_binding import VARIABLE, openmp_environment, own_binding, stage_environments
from zpptool.errors import ExitCode, ZppError

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names no cores unless a test sets them."""
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize("value", ["", "auto", "nobind"])
def test_where_no_cores_are_named_nothing_is_bound(value: str) -> None:
    assert own_binding({VARIABLE: value}, [1, 2]) == ["", ""]
    assert openmp_environment({VARIABLE: value}, 0, 1) == {}
    assert openmp_environment({}, 0, 1) == {}


def test_each_stage_has_as_many_lists_as_ranks() -> None:
    assert own_binding({VARIABLE: "0|1-2|3"}, [1, 2]) == ["0", "1-2|3"]


def test_openmp_gets_the_variables_that_vllm_sets_for_its_workers() -> None:
    env = {VARIABLE: "5,2-4|7"}
    expected = {"OMP_NUM_THREADS": "4", "OMP_PLACES": "{5,2,3,4}", "OMP_PROC_BIND": "true"}
    assert openmp_environment(env, 0, 2) == expected
    assert openmp_environment(env, 1, 2) == {"OMP_NUM_THREADS": "1", "OMP_PLACES": "{7}", "OMP_PROC_BIND": "true"}


def test_the_environment_of_this_process_holds_where_a_stage_has_none_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "3")
    assert own_binding({}, [1]) == ["3"]
    assert own_binding({VARIABLE: "nobind"}, [1]) == [""]


@pytest.mark.parametrize(
    ("value", "sizes", "message"),
    [
        ("0|1", [1], "has 2 lists of cores, for 1 processes"),
        ("0", [1, 1], "has 1 lists of cores, for 2 processes"),
        ("0-", [1], "'0-' is not a list of cores"),
        ("0||2", [1, 1, 1], "'' is not a list of cores"),
        ("0;1", [1], "'0;1' is not a list of cores"),
    ],
)
def test_an_invalid_value_is_refused_by_name(value: str, sizes: list[int], message: str) -> None:
    with pytest.raises(ZppError, match=message) as refused:
        own_binding({VARIABLE: value}, sizes)
    assert refused.value.exit_code is ExitCode.USAGE


def test_every_process_computes_with_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert stage_environments((1,), ()) == [{"OMP_NUM_THREADS": str(cores)}]
    assert stage_environments((1,) * 10 * cores, ()) == [{"OMP_NUM_THREADS": "1"}] * (10 * cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert stage_environments((1, 1), ()) == [{"OMP_NUM_THREADS": "7"}] * 2


def test_every_stage_is_shown_its_own_devices() -> None:
    shown = [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "0"}]
    made = stage_environments((1, 1), shown)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in made] == ["3", "0"]
    assert all("OMP_NUM_THREADS" in env for env in made)


def test_every_stage_of_a_machine_has_its_own_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0|1|2")
    assert [env[VARIABLE] for env in stage_environments((1, 2), ())] == ["0", "1|2"]


@pytest.mark.skipif(len(CORES) < 2, reason="there is one core")
def test_torch_computes_on_the_cores_that_are_named(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    script = "import torch, os; torch.ones(9).sum(); print(torch.get_num_threads(), *sorted(os.sched_getaffinity(0)))"
    for core in CORES[:2]:
        env = {**os.environ, **openmp_environment({VARIABLE: str(core)}, 0, 1)}
        ran = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
        assert ran.stdout.split() == ["1", str(core)]
