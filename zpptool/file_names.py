# SPDX-License-Identifier: Apache-2.0
"""Whether a name that somebody else wrote is safe to use as a file's, and to print on one line.

Manifests, indexes, plans and the Hub's answers name files. A name that is used without a check can lead out of the
directory that it is meant for (`../x`, `/etc/x`), or end a line in a file of another format.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

LONGEST_NAME_BYTES = 255
"""Of one file name, on every file system of Linux."""
LONGEST_PATH_BYTES = 4095
"""Of a whole path (PATH_MAX, less the closing NUL)."""


def is_plain_name(text: str) -> bool:
    """Whether `text` names a file in a directory, and nothing outside it: no separator, no `..`, one printable line."""
    if text in ("", ".", "..") or "/" in text or holds_control(text):
        return False
    return len(text.encode()) <= LONGEST_NAME_BYTES


def is_inner_path(text: str) -> bool:
    """Whether `text` is a relative path, with slashes, whose every part is a plain name."""
    return all(map(is_plain_name, text.split("/"))) and len(text.encode()) <= LONGEST_PATH_BYTES


def named_twice(paths: Iterable[str]) -> str | None:
    """The first of these paths that is also another's, or a folder of another; None where each can be a file."""
    files: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        above = {path[:place] for place, sign in enumerate(path) if sign == "/"}
        if path in files | folders or above & files:
            return path
        files.add(path)
        folders |= above
    return None


def holds_control(text: str) -> bool:
    """Whether `text` is more than one line, or no text: control characters, line separators, half a surrogate pair."""
    return any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in text)
