# SPDX-License-Identifier: Apache-2.0
"""JSON and YAML that somebody else wrote, read within bounds: of length, depth and numbers, and without a traceback.

What a parser makes of a short text can be endless (YAML's aliases and merges), too deep to walk, or a number that
Python refuses to print. None of it is needed in a config, an index, a plan or a file of settings.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec

from zpptool.errors import ZppError, invalid_error
from zpptool.regular_file import read_regular

MAX_DEPTH = 64
MAX_DIGITS = 40
"""More than any count of bytes or tokens has, and few enough to compute with; tokenizers write 10**30 for no limit."""
_ABSURD = re.compile(rf"[-+]?(?:[0-9_:.]{{{MAX_DIGITS + 1},}}|0[xXbB][0-9a-fA-F_]{{{MAX_DIGITS + 1},}})")

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""A number of things or bytes, as a file of somebody else's may give it."""


def read_json(path: Path, limit: int, what: str, hint: str | None = None) -> Any:
    """The value that a JSON file holds.

    Args:
        path: the file.
        limit: of its length, in bytes.
        what: it should be, for messages: "config".
        hint: what to do about a file that cannot be read.

    Raises:
        ZppError: (INVALID) it is no regular file, too long, no JSON, or out of bounds.
    """
    try:
        value = json.loads(read_regular(path, limit, what))
        _check_bounds(value)
    except OSError as cause:
        raise invalid_error(f"{path} cannot be read as JSON: {cause.strerror}", hint) from cause
    except (ValueError, RecursionError) as cause:
        raise invalid_error(f"{path} cannot be read as JSON: {cause}", hint) from cause
    return value


def read_yaml(path: Path, limit: int, what: str, hint: str | None = None) -> Any:
    """The value that a YAML file holds; None for an empty one. Arguments as of `read_json`.

    Raises:
        ZppError: (INVALID) it is no regular file, too long, no YAML, or out of bounds.
    """
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = read_regular(path, limit, what).decode()
        _check_events(yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)
    except OSError as cause:
        raise invalid_error(f"{path} cannot be read: {cause.strerror}", hint) from cause
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as cause:
        raise _no_yaml(path, cause, hint) from cause


def _no_yaml(path: Path, cause: Exception, hint: str | None) -> ZppError:
    return invalid_error(f"{path} is not YAML: {' '.join(str(cause).split())}", hint)


def _check_events(events: Any) -> None:
    """Refuse, before anything is made of it, what grows or is too deep; raises ValueError."""
    import yaml

    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise ValueError(f"line {line} is nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line} has an alias (*{event.anchor}); write the value out")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"line {line} has the tag {event.tag}; write a plain value")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _ABSURD.fullmatch(event.value):
            raise ValueError(f"line {line} has a number of {len(event.value)} digits")


def _check_bounds(value: Any) -> None:
    """Refuse a value of JSON that is too deep, has an absurd number, or half a surrogate pair; raises ValueError."""
    level = [value]
    for _depth in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                if not item.isascii():
                    item.encode()
            elif isinstance(item, int) and abs(item) >= 10**MAX_DIGITS:
                raise ValueError(f"it has a number of more than {MAX_DIGITS} digits")
        if not below:
            return
        level = below
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
