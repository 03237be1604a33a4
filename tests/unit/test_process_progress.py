# SPDX-License-Identifier: Apache-2.0
"""A process reports its phase in a file; a report that cannot be written is ignored."""

from __future__ import annotations

import os
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


def test_what_is_no_file_of_this_user_is_no_phase(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("ready")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "long").write_text("x" * 1000)
    assert progress.read_phase(tmp_path / "link") == progress.STARTING
    assert progress.read_phase(tmp_path / "fifo") == progress.STARTING
    assert progress.read_phase(tmp_path / "long") == "x" * progress.WIDTH


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_progress_file_of_another_user_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "stage-0"
    path.write_text("ready")
    assert progress.read_phase(path) == "ready"
    os.chown(path, 65534, 65534)
    assert progress.read_phase(path) == progress.STARTING


def test_a_phase_is_not_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "stage-0").symlink_to(tmp_path / "victim")
    monkeypatch.setenv(PHASE_VARIABLE, str(tmp_path / "stage-0"))
    progress.report_phase("ready")
    assert (tmp_path / "victim").read_text() == "untouched"
