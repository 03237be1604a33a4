# SPDX-License-Identifier: Apache-2.0
"""`zpptool config show`: what every option would be, and whether command line, environment, file or default says so."""

from __future__ import annotations

import os
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from zpptool.cli.examples import epilog
from zpptool.cli.options import JsonOption
from zpptool.cli.settings import Settings, environment_names, install, is_secret, names_of, options, read_settings, walk
from zpptool.console import Console
from zpptool.errors import usage_error

HIDDEN = "(set, not shown)"

config_app = typer.Typer(help="Look at the settings that commands would use.", no_args_is_help=True)


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
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORDS]...", help="As they would follow COMMAND.")
    ] = None,
) -> None:
    """Show the effective settings and where each comes from: command line, environment, file, or default.

    Without COMMAND, only what is not a default is shown. The value of a secret is never shown.
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
    rows: list[dict[str, Any]] = []
    for name, item in commands.items():
        if command in (None, name):
            rows += _rows(root, name, item, list(words or []), defaults, settings)
    if command is None and not everything and not as_json:
        rows = [row for row in rows if row["source"] != "default"]
    payload = {"file": str(path) if path else None, "settings": rows}
    Console(as_json=as_json).result(payload, lambda out: _show(out, payload))


def _rows(
    root: typer.Context, name: str, command: TyperCommand, words: list[str], defaults: dict[str, Any], file: Settings
) -> list[dict[str, Any]]:
    own = defaults
    for part in name.split():
        own = own.get(part, {})
    context = cast(
        typer.Context, command.make_context(name, words, parent=root, resilient_parsing=True, default_map=own)
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
    told = context.get_parameter_source(name)
    kind = told.name if told is not None else "DEFAULT"
    if kind == "COMMANDLINE":
        return "command line"
    if kind == "ENVIRONMENT":
        return next((variable for variable in variables if os.environ.get(variable)), "environment")
    if kind == "DEFAULT_MAP" and found is not None:
        return f"{file.path}: {found[1]}"
    return "default"


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


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
