# SPDX-License-Identifier: Apache-2.0
"""Options from a file and from the environment, with one precedence for every command: command line, `ZPP_*`, file,
default.

The file is one YAML mapping. A key is an option's long name without its dashes and applies to every command that has
the option, or to zpptool itself (`log-level`, `log-format`); under a command's name it applies to that command, and
takes precedence. An unknown key is refused, so that nothing in the file is ignored. `--base-port` is `ZPP_BASE_PORT` in
the environment, for all commands.
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
ROOT = "zpptool"
"""The name of zpptool itself among those of commands."""
NOT_SETTINGS = frozenset({"help", "version", "config", "install-completion", "show-completion"})
MAX_FILE_BYTES = 1 << 20
_SECRET = re.compile(r"(.*-)?(api-key|token|secret|password|invite)s?")

Defaults = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """The content of a file of settings.

    Attributes:
        path: the file; None for none.
        common: values by option name, for every command and for zpptool itself.
        own: values by command, then option name.
    """

    path: Path | None = None
    common: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def find(self, command: str, names: list[str]) -> tuple[Any, str] | None:
        """The value of an option that has these names, and its key in the file; None where the file has none.

        Args:
            command: the command's full name; `ROOT` for an option of zpptool itself.
            names: the option's long names, without dashes.
        """
        for values, prefix in ((self.own.get(command, {}), f"{command}."), (self.common, "")):
            for name in names:
                if name in values:
                    return values[name], f"{prefix}{name}"
        return None


def read_settings(path: Path, root: TyperGroup) -> Settings:
    """Read a file of settings, and check every key and value against the options of the commands.

    Raises:
        ZppError: (INVALID) it cannot be read, or is not a mapping; (USAGE) a key is unknown, or its value not valid.
    """
    content = read_yaml(path, MAX_FILE_BYTES, "file of settings", "--config names one YAML file.") or {}
    if not isinstance(content, dict):
        raise invalid_error(f"{path} is not a mapping of options to values")
    commands = dict(walk(root))
    every = {name for command in commands.values() for option in options(command) for name in names_of(option)}
    every |= {name for option in options(root) for name in names_of(option)}
    own, common = {}, {}
    for key, value in content.items():
        if key in commands:
            if not isinstance(value, dict):
                raise usage_error(f"{path}: {key} is a command; its value has to be a mapping of its options to values")
            known = {name for option in options(commands[key]) for name in names_of(option)} | {ENGINE_ARGS}
            _refuse_unknown(path, value, known, f"{key}.")
            own[key] = value
        else:
            common[key] = value
    _refuse_unknown(path, common, every | {ENGINE_ARGS} | set(commands), "")
    settings = Settings(path, common, own)
    _refuse_values(settings, ROOT, root)
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


def options(command: TyperCommand | TyperGroup) -> list[TyperOption]:
    """The options of a command, or of zpptool itself, that a file may set: not --help or --version."""
    found = [item for item in command.params if isinstance(item, TyperOption)]
    return [option for option in found if names_of(option) and not NOT_SETTINGS & set(names_of(option))]


def names_of(option: TyperOption) -> list[str]:
    """An option's long names, without the dashes."""
    return [name.removeprefix("--") for name in option.opts if name.startswith("--")]


def environment_names(option: TyperOption) -> list[str]:
    """The variables that set an option."""
    return [f"ZPP_{name.upper().replace('-', '_')}" for name in names_of(option)]


def is_secret(option: TyperOption) -> bool:
    """Whether an option's value must not be shown."""
    return not option.is_flag and any(_SECRET.fullmatch(name) for name in names_of(option))


def install(root: TyperGroup, settings: Settings) -> Defaults:
    """Give every option its environment variables, and return the file's values as click's `default_map`."""
    defaults: Defaults = {}
    for name, command in walk(root):
        into = defaults
        for part in name.split():
            into = into.setdefault(part, {})
        for option in options(command):
            if option.envvar is None:
                option.envvar = environment_names(option)
                option.show_envvar = False
            found = settings.find(name, names_of(option))
            if found is not None and option.name is not None:
                into[option.name] = as_typed(option, found[0])
    return defaults


def engine_arguments(settings: Settings, command: str) -> list[str]:
    """The arguments of the engine, where none follow -- on the command line."""
    text = os.environ.get("ZPP_ENGINE_ARGS")
    if text:
        return shlex.split(text)
    found = settings.find(command, [ENGINE_ARGS])
    return [str(item) for item in found[0]] if found else []


def as_typed(option: TyperOption, value: Any) -> Any:
    """A value of the file as it would be typed: text, which the option's own type then parses.

    Raises:
        ZppError: (USAGE) it is a mapping, or a list that holds one, or nothing.
    """
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict | list) for item in items):
        raise usage_error(f"the value of {names_of(option)[0]} is neither a single value nor a list of values")
    if any(item is None for item in items):
        raise usage_error(f"the value of {names_of(option)[0]} is empty", "Give it a value, or leave the key out.")
    texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in items]
    if option.multiple:
        return texts if isinstance(value, list) else texts[0].split()
    return ",".join(texts)


def root_value(ctx: typer.Context, root: TyperGroup, settings: Settings, name: str) -> Any:
    """The value of an option of zpptool itself: typed, from the environment, from the file, or its default.

    Args:
        ctx: of zpptool itself.
        root: the group of all commands.
        settings: of the file.
        name: the option's name in Python.
    """
    option = next(item for item in options(root) if item.name == name)
    found = settings.find(ROOT, names_of(option))
    source = ctx.get_parameter_source(name)
    if found is None or (source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")):
        return ctx.params[name]
    return option.process_value(ctx, as_typed(option, found[0]))


def _refuse_unknown(path: Path, given: Mapping[Any, Any], known: set[str], prefix: str) -> None:
    """Refuse a key that is not known, and suggest the nearest one that is."""
    for key in given:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key).replace("_", "-"), sorted(known), n=1)
        raise usage_error(
            f"{path}: there is no option {prefix}{key}",
            f"Did you mean {prefix}{near[0]}?" if near else "zpptool config show --all lists them.",
        )


def _refuse_values(settings: Settings, name: str, command: TyperCommand | TyperGroup) -> None:
    """Parse every value once, so that an invalid one is reported with its file and key."""
    context = typer.Context(command)
    engine_args = settings.find(name, [ENGINE_ARGS])
    if engine_args and not isinstance(engine_args[0], list):
        raise usage_error(f"{settings.path}: {engine_args[1]} has to be a list of arguments")
    for option in options(command):
        found = settings.find(name, names_of(option))
        if found is None:
            continue
        try:
            option.process_value(context, as_typed(option, found[0]))
        except typer.BadParameter as cause:
            raise usage_error(f"{settings.path}: {found[1]}: {cause.format_message()}") from cause
