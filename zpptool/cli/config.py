# SPDX-License-Identifier: Apache-2.0
"""`zpptool config show`: the value of every option, and where it comes from."""

from __future__ import annotations

import os
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from zpptool.cli.examples import epilog
from zpptool.cli.options import JsonOption
from zpptool.cli.settings import (
    ROOT,
    Settings,
    environment_names,
    install,
    is_secret,
    names_of,
    options,
    read_settings,
    root_value,
    walk,
)
from zpptool.console import Console
from zpptool.errors import usage_error
from zpptool.net.addresses import without_credentials

HIDDEN = "(set, not shown)"

config_app = typer.Typer(help="Show the settings that commands would use.", no_args_is_help=True)


@config_app.command(
    "show",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=epilog("config show"),
)
def show(
    ctx: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Show defaults too, of every command.")] = False,
    as_json: JsonOption = False,
    command: Annotated[
        str | None, typer.Argument(metavar="[COMMAND]", help="Only this command, with its defaults.")
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGUMENTS]...", help="The arguments that would follow COMMAND.")
    ] = None,
) -> None:
    """Show the effective settings and where each comes from: command line, environment, file, or default.

    Without COMMAND, values that are defaults are left out, and the options of zpptool itself (--log-level,
    --log-format) are shown first. The value of a secret is never shown.
    """
    root = cast(typer.Context, ctx.find_root())
    group = root.command
    assert isinstance(group, TyperGroup)
    commands = dict(walk(group))
    if command is not None and command not in commands:
        raise usage_error(f"there is no command {command}", f"There are {', '.join(commands)}.")
    path = root.params.get("config")
    settings = Settings() if path is None else read_settings(path, group)
    defaults = install(group, settings)
    rows = _root_rows(root, group, settings) if command is None else []
    for name, item in commands.items():
        if command in (None, name):
            rows += _rows(root, name, item, list(arguments or []), defaults, settings)
    if command is None and not everything and not as_json:
        rows = [row for row in rows if row["source"] != "default"]
    payload = {"file": str(path) if path else None, "settings": rows}
    Console(as_json=as_json).result(payload, lambda out: _show(out, payload))


def _root_rows(root: typer.Context, group: TyperGroup, file: Settings) -> list[dict[str, Any]]:
    """The rows of the options of zpptool itself."""
    rows = []
    for option in options(group):
        assert option.name is not None
        value = root_value(root, group, file, option.name)
        found = file.find(ROOT, names_of(option))
        variables = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
        source = _source(root, option.name, variables, found, file)
        rows.append({"command": ROOT, "option": names_of(option)[0], "value": _plain(value), "source": source})
    return rows


def _rows(
    root: typer.Context,
    name: str,
    command: TyperCommand,
    arguments: list[str],
    defaults: dict[str, Any],
    file: Settings,
) -> list[dict[str, Any]]:
    """The rows of the options of one command, as if `arguments` followed it."""
    own = defaults
    for part in name.split():
        own = own.get(part, {})
    context = cast(
        typer.Context, command.make_context(name, arguments, parent=root, resilient_parsing=True, default_map=own)
    )
    rows = []
    for option in options(command):
        if option.hidden or option.name is None:
            continue
        value = context.params.get(option.name)
        source = _source(context, option.name, environment_names(option), file.find(name, names_of(option)), file)
        shown = HIDDEN if is_secret(option) and value is not None else _plain(value)
        rows.append({"command": name, "option": names_of(option)[0], "value": shown, "source": source})
    return rows


def _source(
    context: typer.Context, name: str, variables: list[str], found: tuple[Any, str] | None, file: Settings
) -> str:
    """Where the value of an option comes from, as text."""
    given = context.get_parameter_source(name)
    kind = given.name if given is not None else "DEFAULT"
    if kind == "COMMANDLINE":
        return "command line"
    if kind == "ENVIRONMENT":
        return next((variable for variable in variables if os.environ.get(variable)), "environment")
    if found is not None:
        return f"{file.path}: {found[1]}"
    return "default"


def _plain(value: Any) -> Any:
    """A value as JSON can hold it, without the credentials of a URL."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else without_credentials(str(value))


def _show(out: Console, payload: dict[str, Any]) -> None:
    out.line(f"file: {payload['file'] or 'none (--config FILE, or ZPP_CONFIG)'}")
    if not payload["settings"]:
        out.line("every option has its default")
        return
    rows = [
        (row["command"], row["option"], "" if row["value"] is None else row["value"], row["source"])
        for row in payload["settings"]
    ]
    out.table("", ("command", "option", "value", "from"), rows)
