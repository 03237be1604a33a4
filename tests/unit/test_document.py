# SPDX-License-Identifier: Apache-2.0
"""Untrusted files: only regular ones within limits are read; others are refused in one line."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zpptool.document import read_json, read_yaml
from zpptool.errors import ExitCode, ZppError
from zpptool.regular_file import open_regular, read_regular

LIMIT = 1 << 20
READERS = [read_json, read_yaml, read_regular]


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def bound_socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


SPECIAL = [fifo, bound_socket, folder, lambda _path: Path("/dev/zero"), lambda _path: Path("/dev/null")]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize("read", READERS)
def test_a_special_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], Path], read: Callable[[Path, int, str], Any]
) -> None:
    with pytest.raises(ZppError, match="not a regular file") as refused:
        read(make(tmp_path / "x"), LIMIT, "plan")
    assert refused.value.exit_code == ExitCode.INVALID


def test_a_link_to_a_fifo_is_one(tmp_path: Path) -> None:
    fifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    with pytest.raises(ZppError, match="a FIFO"):
        open_regular(tmp_path / "link")


@pytest.mark.parametrize("read", READERS)
def test_a_file_is_read_up_to_its_limit(tmp_path: Path, read: Callable[[Path, int, str], Any]) -> None:
    (tmp_path / "x").write_bytes(b"1" * 30)
    read(tmp_path / "x", 30, "plan")
    with pytest.raises(ZppError, match="larger than any plan"):
        read(tmp_path / "x", 29, "plan")
    with (tmp_path / "x").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ZppError, match="larger than any plan"):
        read(tmp_path / "x", 29, "plan")


def test_an_impossible_path_is_refused() -> None:
    with pytest.raises(ZppError, match="is not a valid path"):
        open_regular(Path("a\0b"))


YAML = [
    "[" * 20000, "- " * 20000, "{a: " * 500, "2024-99-99", "2024-01-01 25:00:00", "0x_", "!!int x", "!!bool x",
    "!!timestamp x", "!!binary x", "!!python/object:os.system x", "1:" * 100_000 + "1", "9" * 5000, "-" + "9" * 5000,
    "0x" + "f" * 5000, "1" * 100 + "." + "1" * 100, "a: &a [1]\nb: *a", "a: &a {x: 1}\nb: {<<: *a}", "a: [", "\t", "*a",
    "? [a]\n: b", "? {a: b}\n: c", "a: b: c", "--- a\n--- b", "\0", "%YAML 9.9\n---\na",
]  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", YAML, ids=lambda text: repr(text[:20]))
def test_absurd_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ZppError, match="is not YAML") as refused:
        read_yaml(tmp_path / "x.yaml", LIMIT, "plan")
    assert refused.value.exit_code == ExitCode.INVALID
    assert "\n" not in refused.value.message


JSON = [
    b"[" * 100_000, b"[" * 65 + b"]" * 65, b'{"a":' * 65 + b"1" + b"}" * 65, b"9" * 41, b"-" + b"9" * 41, b"9" * 5000,
    b'"\\ud800"', b'{"\\ud800": 1}', b"\xff", b"", b"{", b"nul",
]  # fmt: skip


@pytest.mark.parametrize("raw", JSON, ids=lambda raw: repr(raw[:20]))
def test_absurd_json_is_one_line(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.json").write_bytes(raw)
    with pytest.raises(ZppError, match="cannot be read as JSON") as refused:
        read_json(tmp_path / "x.json", LIMIT, "config")
    assert refused.value.exit_code == ExitCode.INVALID
    assert "\n" not in refused.value.message


def test_ordinary_documents_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1, 1e30, 1000000000000000019884624838656, "\\ud83d\\ude00", null]}')
    assert read_json(tmp_path / "x.json", LIMIT, "config")["a"][2] == 1000000000000000019884624838656
    (tmp_path / "x.yaml").write_text(f"a: [1, 0x1f, 1.5, {'ab' * 32}, '{'1' * 64}']\nb: 2024-01-01\nc: &c yes\n")
    assert read_yaml(tmp_path / "x.yaml", LIMIT, "plan")["a"][3:] == ["ab" * 32, "1" * 64]
    (tmp_path / "x.yaml").write_text("")
    assert read_yaml(tmp_path / "x.yaml", LIMIT, "plan") is None
