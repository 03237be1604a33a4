# SPDX-License-Identifier: Apache-2.0
"""Read untrusted JSON and YAML within limits on length, nesting and numbers.

A short document can expand without bound (YAML aliases and merges), be too deeply nested to process, or contain a
number that Python refuses to print. No config, index, plan or settings file needs any of these.
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
"""Maximum digits of an integer: enough for any count (tokenizers write 10**30 for no limit), and cheap to process."""
_HUGE_NUMBER = re.compile(rf"[-+]?(?:[0-9_:.]{{{MAX_DIGITS + 1},}}|0[xXbB][0-9a-fA-F_]{{{MAX_DIGITS + 1},}})")

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""A count of items or bytes in an untrusted file."""


def read_json(path: Path, limit: int, what: str, hint: str | None = None) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        limit: maximum length in bytes.
        what: the kind of file, for messages, for example "config".
        hint: what to do if the file cannot be read, for messages.

    Raises:
        ZppError: (INVALID) it is not a regular file, is too long, is not JSON, or exceeds a limit.
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
    """Read a YAML file; None for an empty one. The arguments are those of `read_json`.

    Raises:
        ZppError: (INVALID) it is not a regular file, is too long, is not YAML, or exceeds a limit.
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
        raise _yaml_error(path, cause, hint) from cause


def _yaml_error(path: Path, cause: Exception, hint: str | None) -> ZppError:
    return invalid_error(f"{path} is not YAML: {' '.join(str(cause).split())}", hint)


def _check_events(events: Any) -> None:
    """Refuse aliases, tags, deep nesting and huge numbers before values are constructed; raises ValueError."""
    import yaml

    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise ValueError(f"line {line} is nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line} has an alias (*{event.anchor}); write out the value")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"line {line} has the tag {event.tag}; write a plain value")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _HUGE_NUMBER.fullmatch(event.value):
            raise ValueError(f"line {line} has a number of {len(event.value)} digits")


def _check_bounds(value: Any) -> None:
    """Refuse a JSON value with deep nesting, a huge number, or an unpaired surrogate; raises ValueError."""
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
