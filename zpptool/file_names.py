# SPDX-License-Identifier: Apache-2.0
"""Check that an untrusted name is safe as a file name and can be printed on one line.

Manifests, indexes, plans and the Hub's responses name files. Without a check, a name can lead out of its directory
(`../x`, `/etc/x`), or end a line in a file of another format.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

LONGEST_NAME_BYTES = 255
"""Maximum length in bytes of a file name on Linux file systems."""
LONGEST_PATH_BYTES = 4095
"""Maximum length in bytes of a path (PATH_MAX without the terminating NUL)."""


def is_plain_name(text: str) -> bool:
    """Return whether `text` is a plain file name: no separator, not `..`, one line, not too long."""
    if text in ("", ".", "..") or "/" in text or holds_control(text):
        return False
    return len(text.encode()) <= LONGEST_NAME_BYTES


def is_inner_path(text: str) -> bool:
    """Return whether `text` is a relative path with slashes, all of whose components are plain names."""
    return all(map(is_plain_name, text.split("/"))) and len(text.encode()) <= LONGEST_PATH_BYTES


def named_twice(paths: Iterable[str]) -> str | None:
    """Return the first path that is a duplicate, or is a folder of another path; None if all can be files."""
    files: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        parents = {path[:place] for place, character in enumerate(path) if character == "/"}
        if path in files | folders or parents & files:
            return path
        files.add(path)
        folders |= parents
    return None


def holds_control(text: str) -> bool:
    """Return whether `text` has control characters, line separators, or unpaired surrogates."""
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)
