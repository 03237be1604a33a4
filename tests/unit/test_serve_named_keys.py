# SPDX-License-Identifier: Apache-2.0
"""API keys with names: their sources, what is refused, and that no message shows a key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zpptool.errors import ExitCode, ZppError
from zpptool.serve.named_keys import ApiKey, collect_keys, refuse_empty_variables


def key_file(directory: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path = directory / "keys"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def test_keys_have_the_names_of_the_file_or_a_number(tmp_path: Path) -> None:
    file = key_file(tmp_path, "alice: a1\n\n  plain  \r\nbob@host.example-1:\t b:2 \nsk:no-name\n")
    assert collect_keys(["first"], file) == (
        ApiKey("key 1", "first"), ApiKey("alice", "a1"), ApiKey("key 3", "plain"),
        ApiKey("bob@host.example-1", "b:2"), ApiKey("key 5", "sk:no-name"),
    )  # fmt: skip
    assert collect_keys([], None) == ()


def test_a_key_is_not_in_its_repr() -> None:
    assert "hidden" not in repr(collect_keys(["hidden"], None))


@pytest.mark.parametrize("given", [[""], [" "], ["good", ""], ["a b"], ["a\n"], ["a\x1b"]])
def test_an_empty_key_or_one_with_blanks_is_refused(given: list[str]) -> None:
    with pytest.raises(ZppError, match="an API key ") as refused:
        collect_keys(given, None)
    assert refused.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("name", ["ZPP_API_KEY", "ZPP_API_KEY_FILE"])
@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_a_variable_that_is_set_and_empty_is_refused(name: str, value: str) -> None:
    refuse_empty_variables({name: "x", "OTHER": ""})
    with pytest.raises(ZppError, match=f"{name} is set and empty") as refused:
        refuse_empty_variables({name: value})
    assert refused.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("line", ["name:", "name: ", "two words", "# no", "a name: key", "x: two words", "k\x07"])
def test_a_line_that_is_no_key_is_refused_by_number_and_not_shown(tmp_path: Path, line: str) -> None:
    with pytest.raises(ZppError, match="keys, line 2 is neither a key nor a name and a key") as refused:
        collect_keys([], key_file(tmp_path, f"good\n{line}\n"))
    assert refused.value.exit_code is ExitCode.USAGE
    assert line.strip() not in refused.value.message


@pytest.mark.parametrize("content", ["", "\n \n", b"\xff\xfe"])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(ZppError, match=r"holds no key|is not UTF-8") as refused:
        collect_keys([], key_file(tmp_path, content))
    assert refused.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("alice: a\nalice: b\n", "two API keys are called alice"),
        ("alice: secret\nbob: secret\n", "the API keys alice and bob are the same"),
        ("given\n", "the API keys key 1 and key 2 are the same"),
    ],
)
def test_a_name_or_a_key_that_is_given_twice_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ZppError, match=message) as refused:
        collect_keys(["given"], key_file(tmp_path, content))
    assert refused.value.exit_code is ExitCode.USAGE
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644, 0o602, 0o620])
def test_a_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, "key\n", mode)
    with pytest.raises(
        ZppError, match=f"others can read or change the file of API keys .* \\(mode {mode:04o}\\)"
    ) as no:
        collect_keys([], path)
    assert no.value.hint == f"chmod 600 {path}"
    assert no.value.exit_code is ExitCode.INVALID


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_file_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path, "key\n")
    os.chown(path, 1234, 1234)
    with pytest.raises(ZppError, match=r"belongs to another user \(uid 1234\)"):
        collect_keys([], path)
