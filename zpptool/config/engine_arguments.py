# SPDX-License-Identifier: Apache-2.0
"""vLLM's own arguments, those after `--`, as far as zpptool has to know them: what it decides itself and refuses, and
what concerns clients. vLLM reads them in the process of the engine; here they are examined before anything starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zpptool.config.engine_kind import Engine
from zpptool.document import read_yaml
from zpptool.errors import invalid_error, usage_error

CONFIG = "--config"
"""vLLM's option for a YAML file of its arguments."""
REQUEST_IDS = "--enable-request-id-headers"
ALLOWED_ORIGINS = "--allowed-origins"
PIPELINE_SIZE = "--pipeline-parallel-size"
DECIDED = {
    PIPELINE_SIZE: "The number of stages follows from --num-stages, --ranges, the plan or the stage directories.",
    "-pp": f"That is {PIPELINE_SIZE}: the number of stages follows from --num-stages, --ranges, the plan or the stage"
    " directories.",
    "--distributed-executor-backend": "The ring of stages is the executor.",
    "--model": "Name the model before --.",
}
"""Options that zpptool decides, and what to do instead."""
_LONGEST_FILE = 1 << 20
_SHORTEST_PREFIX = len("--m")


def expanded_arguments(engine: Engine, arguments: Sequence[str]) -> tuple[str, ...]:
    """The arguments with those of vLLM's own `--config FILE` before them, the order in which vLLM reads them; for
    another engine the arguments as they are.

    Raises:
        ZppError: (USAGE) the option is written in a way that vLLM ignores or fails at; (INVALID) the file is not one
            that vLLM can read.
    """
    if engine is not Engine.VLLM:
        return tuple(arguments)
    if any(argument.startswith(f"{CONFIG}=") for argument in arguments):
        raise usage_error(f"vLLM ignores {CONFIG}=FILE after --", f"Write {CONFIG} FILE, with a blank.")
    if CONFIG not in arguments:
        return tuple(arguments)
    at = arguments.index(CONFIG)
    if arguments.count(CONFIG) > 1 or at == len(arguments) - 1:
        raise usage_error(f"vLLM takes one file after {CONFIG}", "Name one YAML file, or leave it out.")
    path = Path(arguments[at + 1])
    if path.suffix not in (".yaml", ".yml"):
        raise invalid_error(f"vLLM takes {CONFIG} files named .yaml or .yml, not {path}")
    listed = read_yaml(path, _LONGEST_FILE, "config file of vLLM")
    if not isinstance(listed, Mapping):
        raise invalid_error(f"{path} is no YAML mapping of vLLM's options")
    return (*_words_of(listed), *arguments[:at], *arguments[at + 2 :])


def refuse_decided(arguments: Sequence[str]) -> None:
    """Refuse the engine's options that zpptool decides.

    Args:
        arguments: expanded.

    Raises:
        ZppError: (USAGE) one is among them, under any of its names, or abbreviated.
    """
    for argument in arguments:
        for option in DECIDED:
            if names_option(argument, option):
                raise usage_error(f"{_name_of(argument)} after -- is decided by zpptool", DECIDED[option])


def has_flag(arguments: Sequence[str], name: str) -> bool:
    """Whether an option without a value is set: of itself and its `--no-` form the last one counts."""
    opposite = f"--no-{name.removeprefix('--')}"
    given = [own for own in map(_name_of, arguments) if own in (name, opposite)]
    return bool(given) and given[-1] == name


def has_option(arguments: Sequence[str], name: str) -> bool:
    """Whether an option is among the arguments, with `_` or `-` in its name, joined to its value or not."""
    return any(_name_of(argument) == name for argument in arguments)


def names_option(argument: str, option: str) -> bool:
    """Whether argparse takes an argument for an option: by its name, or by an abbreviation of it."""
    name = _name_of(argument)
    return name == option or (len(name) >= _SHORTEST_PREFIX and name.startswith("--") and option.startswith(name))


def allowed_origins(arguments: Sequence[str]) -> tuple[str, ...]:
    """The origins that vLLM's `--allowed-origins` lists, as JSON; empty without the option. The last one counts.

    Raises:
        ZppError: (USAGE) its value is not a JSON list of strings.
    """
    origins: tuple[str, ...] = ()
    for number, argument in enumerate(arguments):
        if _name_of(argument) == ALLOWED_ORIGINS:
            _, joined, value = argument.partition("=")
            origins = origins_in_json(value if joined else "".join(arguments[number + 1 : number + 2]))
    return origins


def origins_in_json(text: str) -> tuple[str, ...]:
    """The strings of a JSON list.

    Raises:
        ZppError: (USAGE) the text is something else.
    """
    try:
        origins = json.loads(text)
    except (ValueError, RecursionError):
        origins = None
    if not isinstance(origins, list) or not all(isinstance(origin, str) for origin in origins):
        raise usage_error(f"{ALLOWED_ORIGINS} {text} is not a JSON list of origins", "For example '[\"*\"]'.")
    return tuple(origins)


def _name_of(argument: str) -> str:
    return argument.partition("=")[0].replace("_", "-")


def _words_of(listed: Mapping[Any, Any]) -> Iterator[str]:
    """A config file's entries as arguments, by vLLM's rules."""
    for key, value in listed.items():
        if isinstance(value, bool):
            yield f"--{key}" if value else f"--no-{key}"
        elif isinstance(value, list):
            yield from (f"--{key}", *map(str, value)) if value else ()
        else:
            yield from (f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value))
