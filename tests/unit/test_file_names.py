# SPDX-License-Identifier: Apache-2.0
"""Names that stay inside their directory."""

from __future__ import annotations

import pytest

from zpptool.file_names import is_inner_path, is_plain_name, named_twice

OUTSIDE = ["", ".", "..", "/", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a\0b", "a\nb", "\x1b[2J",
           "\ud800", "a\u2028b", "x" * 256]  # fmt: skip


@pytest.mark.parametrize("text", OUTSIDE)
def test_an_unsafe_name_is_neither_a_name_nor_a_path(text: str) -> None:
    assert not is_plain_name(text)
    assert not is_inner_path(text)


@pytest.mark.parametrize("text", ["a", "model-00001-of-00002.safetensors", "...", "a b", "ä.json", "x" * 255, "-rf"])
def test_an_ordinary_name_is_a_name_and_a_path(text: str) -> None:
    assert is_plain_name(text)
    assert is_inner_path(text)


def test_a_path_inside_is_no_plain_name() -> None:
    assert is_inner_path("1_Pooling/config.json")
    assert not is_plain_name("1_Pooling/config.json")
    assert not is_inner_path("/".join(["x" * 250] * 17))


def test_a_file_is_named_once_and_is_no_folder() -> None:
    assert named_twice(["a", "b/c", "b/d"]) is None
    assert named_twice(["a", "b", "a"]) == "a"
    assert named_twice(["a", "a/b"]) == "a/b"
    assert named_twice(["a/b/c", "a"]) == "a"
