# SPDX-License-Identifier: Apache-2.0
"""A directory that deploy writes is complete or absent, and a directory of another origin is never replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zpptool.deploy.output import write_directory
from zpptool.errors import ExitCode, ZppError


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_files_are_written_into_their_directories(tmp_path: Path) -> None:
    write_directory({"a.yaml": "a\n", "host/b.yaml": "b\n"}, tmp_path / "deep" / "out")
    assert (tmp_path / "deep/out/host/b.yaml").read_text() == "b\n"
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "out"]


def test_existing_files_are_replaced_with_force_only_and_keys_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_directory({"old.yaml": "old\n"}, out)
    (out / "keys").mkdir(mode=0o700)
    (out / "keys/stage_0.keys").write_text("secret")
    (out / "keys/stage_0.keys").chmod(0o600)
    with pytest.raises(ZppError, match="already exists") as refused:
        write_directory({"new.yaml": "new\n"}, out)
    assert refused.value.exit_code == ExitCode.INVALID
    write_directory({"new.yaml": "new\n"}, out, force=True)
    assert names(out) == {"new.yaml", "keys/stage_0.keys", ".zpptool-deploy"}
    assert (out / "keys/stage_0.keys").stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [out]


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis").write_text("years of work")
    with pytest.raises(ZppError, match="not written by zpptool"):
        write_directory({"new.yaml": "new\n"}, out, force=True)
    assert names(out) == {"thesis"}


def test_a_failure_preserves_the_old_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write_directory({"old.yaml": "old\n"}, out)

    def full(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ZppError, match="No space left"):
        write_directory({"new.yaml": "new\n"}, out, force=True)
    assert names(out) == {"old.yaml", ".zpptool-deploy"}
    assert list(tmp_path.iterdir()) == [out]


def test_files_of_the_user_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is the current one, and stays it; what was not written here is neither removed nor replaced."""
    monkeypatch.chdir(tmp_path)
    write_directory({"base/a.yaml": "a\n", "old/b.yaml": "b\n"}, Path())
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay/mine.yaml").write_text("mine")
    (tmp_path / "base/mine.yaml").write_text("mine")
    write_directory({"base/a.yaml": "new\n"}, Path(), force=True)
    assert {str(path) for path in Path().rglob("*") if path.is_file()} == {
        ".zpptool-deploy", "base/a.yaml", "base/mine.yaml", "overlay/mine.yaml",
    }  # fmt: skip
    assert Path("base/a.yaml").read_text() == "new\n"
    assert not Path("old").exists()
    with pytest.raises(ZppError, match=r"overlay/mine\.yaml was not written by zpptool deploy"):
        write_directory({"overlay/mine.yaml": "b\n"}, Path(), force=True)
