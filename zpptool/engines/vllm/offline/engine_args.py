# SPDX-License-Identifier: Apache-2.0
"""Converts constructor arguments of `vllm.LLM` to command-line arguments, which is how stages receive them.

A pure function of the parser's own actions: an argument that the command line does not have, or a value that it cannot
express, is refused by name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from zpptool.errors import usage_error

HEAD_ONLY = frozenset({"chat_template", "disable_log_stats", "hf_token"})
"""Arguments that concern the head only."""
_DECIDED = {
    "pipeline_parallel_size": "Use num_stages.",
    "distributed_executor_backend": "The ring of stages is the executor.",
    "async_scheduling": "It broadcasts tokens over torch.distributed, which stages do not share.",
}


def command_line(given: Mapping[str, Any], actions: Iterable[argparse.Action]) -> tuple[str, ...]:
    """The command-line arguments that are equivalent to keyword arguments.

    Args:
        given: the user's arguments, by the names of `vllm.LLM`; None means an argument's default.
        actions: the parser's.

    Raises:
        ZppError: (USAGE) an argument is unknown or cannot be passed to a stage.
    """
    by_name = {action.dest: action for action in actions}
    arguments: list[str] = []
    for name, value in given.items():
        if name in _DECIDED:
            raise usage_error(f"zpptool.LLM does not take {name}", _DECIDED[name])
        if value is None or name in HEAD_ONLY:
            continue
        if name not in by_name:
            raise usage_error(f"vLLM has no engine argument {name}", "See vllm.LLM and vllm.EngineArgs.")
        arguments += _flag_and_values(name, value, by_name[name])
    return tuple(arguments)


def _flag_and_values(name: str, value: Any, action: argparse.Action) -> list[str]:
    flag = next((flag for flag in action.option_strings if flag.startswith("--")), "")
    if not flag:
        raise usage_error(f"{name} cannot be passed to a stage: vLLM has no flag for it")
    if isinstance(value, bool) and action.nargs == 0:
        if value or isinstance(action, argparse.BooleanOptionalAction):
            return [flag if value else f"--no-{flag.removeprefix('--')}"]
        return []
    if isinstance(value, Mapping):
        return [flag, _json(name, value)]
    if isinstance(value, list | tuple | set | frozenset):
        return [flag, *(_text(name, item) for item in value)]
    return [flag, _text(name, value)]


def _text(name: str, value: Any) -> str:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str | int | float | Path):
        return str(value)
    raise usage_error(
        f"{name} is a {type(value).__name__}, which cannot be passed to stages in processes of their own",
        "Give plain values: numbers, strings, lists or dicts.",
    )


def _json(name: str, value: Mapping[Any, Any]) -> str:
    try:
        return json.dumps(dict(value))
    except TypeError as cause:
        raise usage_error(f"{name} cannot be passed to stages in processes of their own: {cause}") from cause
