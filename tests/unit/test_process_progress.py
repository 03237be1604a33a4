# SPDX-License-Identifier: Apache-2.0
"""A process reports its phase in a file; a report that cannot be written is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from zpptool.process import progress
from zpptool.process.environment import PHASE_VARIABLE


def test_phases_are_written_to_the_file_and_failures_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stage-0"
    assert progress.read_phase(path) == progress.STARTING
    progress.report_phase("no file is named")
    monkeypatch.setenv(PHASE_VARIABLE, str(path))
    count_bytes = progress.loading_progress(1000)
    assert progress.read_phase(path) == "loading 0%"
    count_bytes(430)
    assert progress.read_phase(path) == "loading 43%"
    progress.report_phase("ready")
    assert progress.read_phase(path) == "ready"
    monkeypatch.setenv(PHASE_VARIABLE, str(tmp_path / "no" / "such"))
    progress.report_phase("lost")
