# SPDX-License-Identifier: Apache-2.0
"""Sort the words of a command line into zpptool's own and vLLM's, so that vLLM's flags need no `--` before them.

An option of the command itself takes precedence over a flag of vLLM with its name. A word that neither of them knows
stays where it is, and the command refuses it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from typer import Context
from typer.core import TyperCommand, TyperOption

from zpptool.config.engine_flags import FlagKind, Flags, recorded_flags, release_here, spelled, values_after
from zpptool.config.vllm_releases import VLLM_VERSION
from zpptool.document import read_yaml
from zpptool.errors import invalid_error, usage_error
from zpptool.partition import reads_as_ranges

VLLM_CONFIG = "--vllm-config"
CONFIG_VARIABLE = "ZPP_VLLM_CONFIG"
MAX_CONFIG_BYTES = 1 << 20
LONGEST_LETTER = len("-q")
"""vLLM's flags of one letter need a `--` before them: zpptool uses some of these letters for other things."""

OwnOptions = Mapping[str, bool]
"""The command's own options by their names, dashes included, and whether each takes a value."""


class SortedWords(NamedTuple):
    """The words of a command line: zpptool's own, and those of the engine."""

    own: list[str]
    engine: list[str]


def command_words(words: Sequence[str], command: TyperCommand) -> SortedWords:
    """Sort the words after a command's name, and those of the file that `--vllm-config` or ZPP_VLLM_CONFIG names.

    Raises:
        ZppError: as `words_of_config`.
    """
    own_options = {
        name: not option.is_flag
        for option in command.params
        if isinstance(option, TyperOption)
        for name in (*option.opts, *option.secondary_opts)
    } | dict.fromkeys(command.get_help_option_names(Context(command)), False)
    flags = flags_here()
    found = sort_words(words, own_options, flags)
    file = config_file_of(found.own) or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    if file is None:
        return found
    named = names_a_model(found.own, own_options)
    of_file = sort_words(words_of_config(file, own_options, flags, model_is_named=named), own_options, flags)
    return SortedWords([*of_file.own, *found.own], [*of_file.engine, *found.engine])


def sort_words(words: Sequence[str], options: OwnOptions, flags: Flags) -> SortedWords:
    """Sort the words after a command's name.

    Args:
        words: before `--`.
        options: of the command.
        flags: of vLLM.
    """
    own: list[str] = []
    engine: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        name = word.partition("=")[0]
        if name in options:
            count = 1 if options[name] and "=" not in word else 0
            into = own
        elif len(name) > LONGEST_LETTER and spelled(word) in flags:
            count = values_after(flags, words, at)
            into = engine
        else:
            count, into = 0, own
        into += words[at : at + 1 + count]
        at += 1 + count
    return SortedWords(own, engine)


def flags_here() -> Flags:
    """The flags of the vLLM that is installed; of the supported release, if that one's were not recorded."""
    return recorded_flags(release_here()) or recorded_flags(VLLM_VERSION) or {}


def names_a_model(words: Sequence[str], options: OwnOptions) -> bool:
    """Whether a command's own words name a model: with --model, or by a word that is no option, no value, no range."""
    at = 0
    while at < len(words):
        name = words[at].partition("=")[0]
        if name in ("--model", "--pipeline-dir", "--plan"):
            return True
        if not words[at].startswith("-") and not reads_as_ranges(words[at]):
            return True
        at += 2 if options.get(name, False) and "=" not in words[at] else 1
    return False


def config_file_of(words: Sequence[str]) -> Path | None:
    """The file that `--vllm-config` names among a command's own words; the last one counts."""
    found = None
    for at, word in enumerate(words):
        if word == VLLM_CONFIG and at + 1 < len(words):
            found = Path(words[at + 1])
        elif word.startswith(f"{VLLM_CONFIG}="):
            found = Path(word.partition("=")[2])
    return found


def words_of_config(path: Path, options: OwnOptions, flags: Flags, *, model_is_named: bool) -> list[str]:
    """The words of a command line that a YAML file of vLLM (`vllm serve --config`) stands for.

    Args:
        path: the file.
        options: of the command. A key that is one of them sets it.
        flags: of vLLM.
        model_is_named: whether the command line names a model, which takes precedence over the file's.

    Raises:
        ZppError: (INVALID) the file cannot be read, or is not a mapping; (USAGE) a key is unknown, or an option of the
            command has several values.
    """
    hint = "It is the file of vllm serve --config: one mapping of flags, without dashes, to values."
    content = read_yaml(path, MAX_CONFIG_BYTES, "configuration of vLLM", hint) or {}
    if not isinstance(content, dict):
        raise invalid_error(f"{path} is not a mapping of flags to values", hint)
    words: list[str] = []
    for key, value in content.items():
        name = f"--{spelled(str(key))}"
        if name == "--model" and model_is_named:
            continue
        if name not in options and name not in flags:
            raise usage_error(f"{path}: neither zpptool nor vLLM has an option {key}", hint)
        words += _words_of_value(path, f"--{str(key).replace('_', '-')}", value, name in options, flags)
    return words


def _words_of_value(path: Path, flag: str, value: Any, is_own: bool, flags: Flags) -> list[str]:
    """The words of one key, as vLLM reads its own file."""
    if isinstance(value, bool):
        no_flag = f"--no-{flag.removeprefix('--')}"
        return [flag] if value else ([no_flag] if no_flag in flags and not is_own else [])
    if isinstance(value, dict):
        return [flag, json.dumps(value)]
    if isinstance(value, list):
        if is_own and len(value) > 1:
            raise usage_error(f"{path}: {flag.removeprefix('--')} has {len(value)} values, and zpptool takes one")
        return [flag, *map(str, value)] if value else []
    if value is None:
        raise usage_error(f"{path}: {flag.removeprefix('--')} has no value", "Give it one, or leave the key out.")
    if flags.get(spelled(flag)) is FlagKind.NONE and not is_own:
        raise usage_error(f"{path}: {flag.removeprefix('--')} is true or false, not {value!r}")
    return [flag, str(value)]
