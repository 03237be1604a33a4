# SPDX-License-Identifier: Apache-2.0
"""The API keys of a front, each with a name: from the options, the environment and a file.

The invariant: an empty key is refused and never taken for no key, which would open the front to everybody; and a key is
never shown: messages name the line or the key's name, and `repr` leaves the key out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zpptool.errors import ZppError, usage_error
from zpptool.ownership import refuse_unguarded
from zpptool.regular_file import open_regular, read_up_to

KEY_VARIABLES = ("ZPP_API_KEY", "ZPP_API_KEY_FILE")
"""The environment variables that give keys."""
MAX_FILE_BYTES = 1 << 20
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9._@-]{1,64}):\s+(?P<secret>\S+)")
_FORM = (
    "A line is KEY or NAME: KEY. A name has up to 64 letters, digits and . _ @ -; a key is printable and has no blanks."
)


@dataclass(frozen=True)
class ApiKey:
    """One key.

    Attributes:
        name: what logs show; unique.
        secret: what a client sends.
    """

    name: str
    secret: str = field(repr=False)


def refuse_empty_variables(environment: Mapping[str, str]) -> None:
    """Refuse a variable for keys that is set and empty: its user believes that a key is required.

    Raises:
        ZppError: (USAGE) there is one.
    """
    for name in KEY_VARIABLES:
        if name in environment and not environment[name].strip():
            raise usage_error(f"{name} is set and empty", "Give it a value, or unset it to require no key.")


def collect_keys(given: Sequence[str], file: Path | None) -> tuple[ApiKey, ...]:
    """All keys that a front accepts; none if none are given.

    Keys without a name are called `key 1`, `key 2` and so on.

    Args:
        given: from the option or the environment.
        file: one key a line, or None.

    Raises:
        ZppError: (USAGE) a key is empty or has blanks, a line is neither a key nor a name and a key, the file holds no
            key, or a name or a key is given twice; (INVALID) others can read or change the file, or it is no regular
            file.
    """
    found: list[ApiKey] = []
    for secret in given:
        if not secret.strip():
            raise usage_error("an API key is empty", "Give it a value, or leave it out to require no key.")
        if not _is_secret(secret):
            raise usage_error("an API key has blanks or characters that cannot be printed", "Check how it was quoted.")
        found.append(ApiKey(f"key {len(found) + 1}", secret))
    if file is not None:
        for name, secret in _read(file):
            found.append(ApiKey(name or f"key {len(found) + 1}", secret))
    _refuse_twice(found)
    return tuple(found)


def _read(file: Path) -> list[tuple[str, str]]:
    """The names, which may be empty, and keys in a file; empty lines are skipped."""
    try:
        with open_regular(file) as opened:
            refuse_unguarded(file, os.fstat(opened.fileno()), "file of API keys")
            text = read_up_to(opened, MAX_FILE_BYTES, file, "file of API keys").decode()
    except UnicodeDecodeError as cause:
        raise usage_error(f"--api-key-file {file} is not UTF-8 text", _FORM) from cause
    except OSError as cause:
        raise usage_error(f"--api-key-file {file} cannot be read: {cause.strerror}") from cause
    lines = enumerate(map(str.strip, text.split("\n")), 1)
    found = [_parse(line, f"{file}, line {number}") for number, line in lines if line]
    if not found:
        raise usage_error(f"--api-key-file {file} holds no key", _FORM)
    return found


def _parse(line: str, where: str) -> tuple[str, str]:
    named = _NAMED.fullmatch(line)
    name, secret = (named["name"], named["secret"]) if named else ("", line)
    if not _is_secret(secret) or (not named and secret.endswith(":")):
        raise _wrong_line(where)
    return name, secret


def _is_secret(text: str) -> bool:
    return text.isprintable() and not any(character.isspace() for character in text)


def _wrong_line(where: str) -> ZppError:
    return usage_error(f"{where} is neither a key nor a name and a key", _FORM)


def _refuse_twice(keys: Sequence[ApiKey]) -> None:
    names: set[str] = set()
    owners: dict[str, str] = {}
    for key in keys:
        if key.name in names:
            raise usage_error(f"two API keys are called {key.name}", "Logs show the names: give each key its own.")
        if key.secret in owners:
            raise usage_error(
                f"the API keys {owners[key.secret]} and {key.name} are the same", "Leave one of them out."
            )
        names.add(key.name)
        owners[key.secret] = key.name
