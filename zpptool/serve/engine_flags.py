# SPDX-License-Identifier: Apache-2.0
"""Options among the engine's arguments that concern clients, and that the gateway therefore carries out as well."""

from __future__ import annotations

import json
from collections.abc import Sequence

from zpptool.errors import usage_error

REQUEST_IDS = "--enable-request-id-headers"
ALLOWED_ORIGINS = "--allowed-origins"


def has_flag(arguments: Sequence[str], name: str) -> bool:
    """Whether an option without a value is among the arguments."""
    return any(_name_of(argument) == name for argument in arguments)


def allowed_origins(arguments: Sequence[str]) -> tuple[str, ...]:
    """The origins that vLLM's `--allowed-origins` lists, as JSON; empty without the option.

    Raises:
        ZppError: (USAGE) its value is no JSON list of strings.
    """
    for number, argument in enumerate(arguments):
        if _name_of(argument) != ALLOWED_ORIGINS:
            continue
        _, joined, value = argument.partition("=")
        return origins_in_json(value if joined else "".join(arguments[number + 1 : number + 2]))
    return ()


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
        raise usage_error(f"{ALLOWED_ORIGINS} {text} is no JSON list of origins", "For example '[\"*\"]'.")
    return tuple(origins)


def _name_of(argument: str) -> str:
    return argument.partition("=")[0].replace("_", "-")
