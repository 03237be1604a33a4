# SPDX-License-Identifier: Apache-2.0
"""The outcome of a trial reaches its report files, also where the trial comes to no verdict."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.config.engine_kind import Engine
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.errors import ExitCode, ZppError
from zpptool.parity.reported_trial import ReportFiles, run_reported_trial
from zpptool.parity.trial_plan import TrialOptions


def options(model: Path, runtime: RuntimeOptions | None = None) -> TrialOptions:
    """A trial in more stages than the model has layers."""
    return TrialOptions(
        engine=Engine.TRANSFORMERS, model=model, pipeline_dir=None, num_stages=5, ranges=(), prompts=("x",),
        as_chat=False, with_long_prompts=False, batched=False, max_new_tokens=1, dtype="auto", gpu_ids=(),
        base_port=None, api_port=None, engine_args=(), runtime=runtime or RuntimeOptions(),
    )  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama(4), llama_config(4))


def test_a_trial_without_a_verdict_is_reported_and_raised(model: Path, tmp_path: Path) -> None:
    files = ReportFiles(tmp_path / "report.json", tmp_path / "junit.xml")
    with pytest.raises(ZppError, match="5 stages are more") as failed:
        run_reported_trial(options(model), files, None)
    assert failed.value.exit_code is ExitCode.INVALID
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == {"schema_version": 1, **failed.value.beside}
    assert (report["verdict"], report["num_stages"]) == ("error", 5)
    assert ElementTree.fromstring((tmp_path / "junit.xml").read_text()).attrib["errors"] == "1"


@pytest.mark.parametrize("name", ["no/such/directory/report.json", "."])
def test_files_that_cannot_be_written_are_refused_before_the_trial(model: Path, tmp_path: Path, name: str) -> None:
    for files in (ReportFiles(report=tmp_path / name), ReportFiles(junit=tmp_path / name)):
        with pytest.raises(ZppError, match="cannot be written") as refused:
            run_reported_trial(options(model), files, None)
        assert refused.value.exit_code is ExitCode.USAGE


def test_a_trace_that_cannot_be_written_is_refused_before_the_trial(model: Path, tmp_path: Path) -> None:
    runtime = RuntimeOptions(trace=str(tmp_path / "no" / "trace.json"))
    with pytest.raises(ZppError) as refused:
        run_reported_trial(options(model, runtime), ReportFiles(), None)
    assert refused.value.exit_code is ExitCode.USAGE
    assert "trace.json" in refused.value.message
