# SPDX-License-Identifier: Apache-2.0
"""Which tests are run, on which server, and under which names: pure functions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from servertests.groups import ADAPTED, CAPACITY, LEFT_OUT, Group
from servertests.results import Result

SERVER_FIXTURE = re.compile(r"(^|_)(server|client)(_|$)")
NOT_A_SERVER = frozenset({"server_args", "default_server_args", "server_config"})


def uses_a_server(fixtures: Iterable[str], source: str) -> bool:
    """Whether a test asks a server, by the names of its fixtures and by its source."""
    named = {name for name in fixtures if SERVER_FIXTURE.search(name)} - NOT_A_SERVER
    return bool(named) or "RemoteOpenAIServer(" in source


def of_group(group: Group, collected: Iterable[str], text: str = "") -> list[str]:
    """The tests of a group, in the order of its modules; `text` is one that has to occur in their ids."""
    tests = list(collected)
    return [test for module in group.modules for test in tests if module.has(test) and text in test]


def remaining(tests: Iterable[str], results: Mapping[str, Result], again: Collection[str] = ()) -> list[str]:
    """Those without a result, or whose outcome is one of `again`."""
    return [test for test in tests if test not in results or results[test].outcome in again]


def unmet(asked: Sequence[str], offered: Sequence[str]) -> list[str]:
    """The arguments that a test's fixture asks for and its server does not have, as they are written."""
    has = _options(offered)
    missing = []
    for name, values in _options(asked).items():
        if name in CAPACITY or name in ADAPTED:
            continue
        if name not in has or (has[name] and values and has[name] != values):
            missing.append(" ".join([name, *values]))
    return missing


def unknown_modules(modules: Iterable[str], groups: Iterable[Group]) -> list[str]:
    """Files that start a server and that neither a group nor the list of what is left out mentions."""
    known = {module.path for group in groups for module in group.modules}
    return sorted(path for path in modules if path not in known and not _is_left_out(path))


def renamed(value: Any, names: Collection[str], name: str) -> Any:
    """The value with each of `names` in it replaced by `name`; also within lists, tuples and dictionaries."""
    if isinstance(value, str):
        return name if value in names else value
    if isinstance(value, dict):
        return {key: renamed(one, names, name) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(renamed(one, names, name) for one in value))
    if isinstance(value, (list, tuple)):
        return type(value)(renamed(one, names, name) for one in value)
    return value


def _is_left_out(path: str) -> bool:
    return any(path.startswith(entry) if entry.endswith("/") else path == entry for entry in LEFT_OUT)


def _options(words: Sequence[str]) -> dict[str, list[str]]:
    """Each option of a command line with its values."""
    options: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, joined, value = word.partition("=")
            options[name] = [value] if joined else []
        elif name:
            options[name].append(word)
    return options
