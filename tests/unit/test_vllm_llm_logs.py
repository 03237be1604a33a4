# SPDX-License-Identifier: Apache-2.0
"""Where `zpptool.LLM` has its stages log: a directory that is named as text and does not exist yet."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]

from zpptool.config.runner_choice import VARIABLE  # noqa: E402
from zpptool.engines.vllm.offline.llm import LLM  # noqa: E402
from zpptool.errors import ExitCode, ZppError  # noqa: E402


@pytest.fixture(autouse=True)
def _v1_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """`LLM` sets the variable; it is restored after each test."""
    monkeypatch.setenv(VARIABLE, "0")


def test_the_directory_of_the_logs_may_be_text_and_is_created(tmp_path: Path) -> None:
    """It is created first: the missing model is what the call ends with."""
    logs = tmp_path / "a" / "b"
    with pytest.raises(ZppError, match="absent"):
        LLM(tmp_path / "absent", num_stages=2, log_dir=str(logs))
    assert logs.is_dir()


def test_a_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ZppError, match="file/logs") as refused:
        LLM(tmp_path / "absent", num_stages=2, log_dir=str(tmp_path / "file" / "logs"))
    assert refused.value.exit_code == ExitCode.USAGE
