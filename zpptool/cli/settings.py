# SPDX-License-Identifier: Apache-2.0
"""Options from a file and from the environment, for every command by one rule: command line, `ZPP_*`, file, default.

The file is one YAML mapping. A key is an option's long name without its dashes and holds for every command that has the
option; under a command's name it holds for that command, and goes before. A key that no command knows is refused, so
what is in the file is used. `--base-port` is `ZPP_BASE_PORT` in the environment, whichever the command.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from zpptool.document import read_yaml
from zpptool.errors import invalid_error, usage_error

ENGINE_ARGS = "engine-args"
"""What follows -- on a command line, as a list."""
NOT_SETTINGS = frozenset({"help", "version", "config", "install-completion", "show-completion"})
MAX_FILE_BYTES = 1 << 20
_SECRET = re.compile(r"(.*-)?(api-key|token|secret|password)s?")

Defaults = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a file says.

    Attributes:
        path: the file; None for none.
        common: values by option name, for every command.
        own: values by command, then option name.
    """

    path: Path | None = None
    common: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def find(self, command: str, names: list[str]) -> tuple[Any, str] | None:
        """The value of an option that has these names, and the key that says so; None where the file is silent."""
        for values, prefix in ((self.own.get(command, {}), f"{command}."), (self.common, "")):
            for name in names:
                if name in values:
                    return values[name], f"{prefix}{name}"
        return None


def read_settings(path: Path, root: TyperGroup) -> Settings:
    """Read a file of settings, and hold every key and value against the commands.

    Raises:
        ZppError: (INVALID) it cannot be read, or is no mapping; (USAGE) a key is unknown, or its value cannot be.
    """
    said = read_yaml(path, MAX_FILE_BYTES, "file of settings", "--config names one YAML file.") or {}
    if not isinstance(said, dict):
        raise invalid_error(f"{path} is no mapping of options to values")
    commands = dict(walk(root))
    every = {name for command in commands.values() for option in options(command) for name in names_of(option)}
    own, common = {}, {}
    for key, value in said.items():
        if key in commands:
            if not isinstance(value, dict):
                raise usage_error(f"{path}: {key} is a command, and wants a mapping of its options to values")
            known = {name for option in options(commands[key]) for name in names_of(option)} | {ENGINE_ARGS}
            _refuse_unknown(path, value, known, f"{key}.")
            own[key] = value
        else:
            common[key] = value
    _refuse_unknown(path, common, every | {ENGINE_ARGS} | set(commands), "")
    settings = Settings(path, common, own)
    for name, command in commands.items():
        _refuse_values(settings, name, command)
    return settings


def walk(group: TyperGroup, prefix: str = "") -> Iterator[tuple[str, TyperCommand]]:
    """Every command below a group by its full name: `split`, `config show`."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from walk(command, f"{prefix}{name} ")
        elif isinstance(command, TyperCommand):
            yield f"{prefix}{name}", command


def options(command: TyperCommand) -> list[TyperOption]:
    """The options of a command that may be set: all but those that only ask for something."""
    found = [item for item in command.params if isinstance(item, TyperOption)]
    return [option for option in found if names_of(option) and not NOT_SETTINGS & set(names_of(option))]


def names_of(option: TyperOption) -> list[str]:
    """An option's long names, without the dashes."""
    return [name.removeprefix("--") for name in option.opts if name.startswith("--")]


def environment_names(option: TyperOption) -> list[str]:
    """The variables that set an option."""
    return [f"ZPP_{name.upper().replace('-', '_')}" for name in names_of(option)]


def is_secret(option: TyperOption) -> bool:
    """Whether an option's value is never to be shown."""
    return any(_SECRET.fullmatch(name) for name in names_of(option))


def install(root: TyperGroup, settings: Settings) -> Defaults:
    """Have every option look into the environment, and return what the file says as click's `default_map`."""
    made: Defaults = {}
    for name, command in walk(root):
        into = made
        for part in name.split():
            into = into.setdefault(part, {})
        for option in options(command):
            if option.envvar is None:
                option.envvar = environment_names(option)
                option.show_envvar = False
            found = settings.find(name, names_of(option))
            if found is not None and option.name is not None:
                into[option.name] = as_typed(option, found[0])
    return made


def engine_arguments(settings: Settings, command: str) -> list[str]:
    """What goes to the engine where nothing follows -- on the command line."""
    told = os.environ.get("ZPP_ENGINE_ARGS")
    if told:
        return shlex.split(told)
    found = settings.find(command, [ENGINE_ARGS])
    return [str(word) for word in found[0]] if found else []


def as_typed(option: TyperOption, value: Any) -> Any:
    """A value of the file as it would be typed: words, which the option's own type then reads.

    Raises:
        ZppError: (USAGE) it is a mapping.
    """
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict | list) for item in items):
        raise usage_error(f"the value of {names_of(option)[0]} is neither a word nor a list of words")
    words = [str(item).lower() if isinstance(item, bool) else str(item) for item in items]
    if option.multiple:
        return words if isinstance(value, list) else words[0].split()
    return ",".join(words)


def _refuse_unknown(path: Path, said: Mapping[Any, Any], known: set[str], prefix: str) -> None:
    for key in said:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key).replace("_", "-"), sorted(known), n=1)
        raise usage_error(
            f"{path}: there is no option {prefix}{key}",
            f"Did you mean {prefix}{near[0]}?" if near else "zpptool config show --all lists them.",
        )


def _refuse_values(settings: Settings, name: str, command: TyperCommand) -> None:
    """Read every value once, so that a wrong one is told with its file and key."""
    context = typer.Context(command)
    engine_args = settings.find(name, [ENGINE_ARGS])
    if engine_args and not isinstance(engine_args[0], list):
        raise usage_error(f"{settings.path}: {engine_args[1]} is to be a list of words")
    for option in options(command):
        found = settings.find(name, names_of(option))
        if found is None:
            continue
        try:
            option.process_value(context, as_typed(option, found[0]))
        except typer.BadParameter as cause:
            raise usage_error(f"{settings.path}: {found[1]}: {cause.format_message()}") from cause
