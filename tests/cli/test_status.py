# SPDX-License-Identifier: Apache-2.0
"""`zpptool status` and the commands of planned changes where there is no pipeline, or two are named."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import typed_here
from conftest import Ran


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_logging: None
) -> Callable[..., Ran]:
    """The command line where no head of this user runs."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return typed_here(monkeypatch, capsys)


@pytest.mark.parametrize("words", [("status",), ("rollout",), ("rebalance", "--ranges", "0-2", "2-4")])
def test_a_front_and_a_head_are_two_pipelines(run: Callable[..., Ran], words: tuple[str, ...], tmp_path: Path) -> None:
    ran = run(*words, "--url", "http://127.0.0.1:1", "--run-dir", tmp_path)
    assert ran.code == 2
    assert "--url and --run-dir name two pipelines" in ran.err


@pytest.mark.parametrize("words", [("status",), ("top",), ("rollout", "--json")])
def test_an_address_without_a_front_is_named(run: Callable[..., Ran], words: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ran = run(*words, "--url", f"http://127.0.0.1:{port}")
    assert ran.code == 5
    assert str(port) in ran.err
    if "--json" in words:
        assert ran.json["stages"] == []
        assert ran.json["error"]["exit_code"] == 5


@pytest.mark.parametrize("words", [("status",), ("rollout",)])
def test_a_directory_without_a_head_is_named(run: Callable[..., Ran], words: tuple[str, ...], tmp_path: Path) -> None:
    ran = run(*words, "--run-dir", tmp_path)
    assert ran.code == 5
    assert str(tmp_path) in ran.err
