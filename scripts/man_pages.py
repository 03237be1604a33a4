# SPDX-License-Identifier: Apache-2.0
"""Write a man page for zpptool and one for each command, from the texts that `--help` shows.

    python scripts/man_pages.py build/man
    man -l build/man/zpptool-split.1

Completion of a shell comes from the same definitions: `zpptool --install-completion`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

import zpptool
from zpptool.cli.app import app
from zpptool.cli.examples import EXAMPLES

SECTION = "1"


def pages(group: Any, name: str = "zpptool") -> Iterator[tuple[str, str]]:
    """Yield the file name and the text of the page of a group and of everything below it.

    Args:
        group: typer's command of the program or of a group, with its `commands`.
        name: the words that call it.
    """
    children = getattr(group, "commands", {})
    yield f"{name.replace(' ', '-')}.{SECTION}", page(group, name, children)
    for child, command in children.items():
        if not command.hidden:
            yield from pages(command, f"{name} {child}")


def page(command: Any, name: str, children: dict[str, Any]) -> str:
    """The page of one command in roff, with the macros of man(7)."""
    first, _, rest = (command.help or "").partition("\n\n")
    dashed = name.replace(" ", "-")
    lines = [
        f'.TH {dashed.upper()} {SECTION} "" "zpptool {zpptool.__version__}"',
        ".SH NAME",
        f"{escaped(dashed)} \\- {escaped(' '.join(first.split()).rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {escaped(name)}",
        escaped(" ".join(synopsis(command, bool(children)))),
    ]
    if rest:
        lines += [".SH DESCRIPTION", *paragraphs(rest)]
    arguments = [item for item in command.params if item.param_type_name == "argument" and not item.hidden]
    options = [item for item in command.params if item.param_type_name == "option" and not item.hidden]
    if arguments:
        lines.append(".SH ARGUMENTS")
        for item in arguments:
            lines += [".TP", f".I {escaped(item.metavar or item.name)}", escaped(one_line(item.help))]
    if options:
        lines.append(".SH OPTIONS")
        for item in options:
            lines += [".TP", described(item), escaped(one_line(item.help))]
    if children:
        lines.append(".SH COMMANDS")
        for child, below in children.items():
            if not below.hidden:
                summary = one_line((below.help or "").partition("\n\n")[0])
                lines += [".TP", f".BR {escaped(f'{dashed}-{child}')} (1)", escaped(summary)]
    if examples := EXAMPLES.get(name.removeprefix("zpptool").strip()):
        lines += [".SH EXAMPLES", ".nf", *map(escaped, examples), ".fi"]
    return "\n".join(lines) + "\n"


def synopsis(command: Any, is_group: bool) -> list[str]:
    """The words after the command's name."""
    named = [item.metavar or str(item.name).upper() for item in command.params if item.param_type_name == "argument"]
    return ["[OPTIONS]", *(["COMMAND"] if is_group else named)]


def described(option: Any) -> str:
    """The names of an option, and what its value is called."""
    names = ", ".join(rf"\fB{escaped(name)}\fR" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return names
    return rf"{names} \fI{escaped(option.metavar or str(option.name).upper())}\fR"


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a help text."""
    return [line for part in text.split("\n\n") for line in (".PP", escaped(one_line(part)))]


def one_line(text: str | None) -> str:
    """A text on one line."""
    return " ".join((text or "").split())


def escaped(text: str) -> str:
    """A text as roff shows it literally: backslashes, hyphens, and a control character at the beginning of a line."""
    shown = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{shown}" if shown.startswith(".") else shown


def main(directory: Path) -> None:
    """Write every page into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    written = list(pages(typer.main.get_command(app)))
    for name, text in written:
        (directory / name).write_text(text, encoding="utf-8")
    print(f"{len(written)} pages in {directory}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/man"))
