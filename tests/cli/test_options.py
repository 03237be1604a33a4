# SPDX-License-Identifier: Apache-2.0
"""No flag is lost, and a flag means the same in every command: same type, metavar and help. Tables hold the exceptions,
each with its reason."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import NamedTuple, Union, get_args, get_origin, get_type_hints

import pytest
import typer.main
from typer.core import TyperCommand, TyperGroup, TyperOption

from zpptool.cli.app import app

RECORDED: dict[str, list[str]] = json.loads((Path(__file__).parent / "flags.json").read_text())
"""The flags of every command; `zpptool` is the program itself."""

OTHER_HELP = {
    ("--model", "validate"): "the model that a split is compared with, not one to read stages from",
    ("--output-dir", "split"): "what is written differs",
    ("--output-dir", "join"): "what is written differs",
    ("--output-dir", "deploy"): "what is written differs",
    ("--output-dir", "keys generate"): "what is written differs",
    ("--output", "profile"): "what is written differs",
    ("--force", "profile"): "what is replaced differs",
    ("--plan", "run-batch"): "its stages are all on this machine",
    ("--force", "split"): "what is replaced differs",
    ("--force", "plan"): "what is replaced differs",
    ("--force", "deploy"): "what is replaced differs",
    ("--force", "keys generate"): "what is replaced differs",
    ("--gpu-ids", "run-stage"): "the GPUs of one stage",
    ("--device", "plan"): "one for all stages, or one a stage",
    ("--image", "plan"): "one for all stages, or one a stage",
    ("--all", "cache remove"): "what is meant by all differs",
    ("--base-port", "serve"): "all stages are on this machine and use ipc by default",
    ("--base-port", "test-pipeline"): "all stages are on this machine and use ipc by default",
    ("--api-port", "serve"): "the head's API is behind the front and takes any port",
    ("--api-port", "test-pipeline"): "only the trial uses the API, so it takes any port",
    ("--insecure", "serve"): "it is about the front's clients, not about links",
    ("--plan", "serve"): "every stage of the plan has to be on this machine",
    ("--plan", "rebalance"): "the plan is rewritten",
    ("--served-model-name", "serve"): "it gives the model its name, and chooses none",
    ("--plan", "stage replace"): "the plan is rewritten",
}
"""Flags whose help alone differs, with the reason."""

OTHER_VALUE = {
    ("--model", "deploy"): "also the Hub or a volume claim, which are not paths",
    ("--device", "deploy"): "a choice between images, not a torch device",
    ("--image", "test-pipeline"): "a picture for the model, not a container image",
    ("--invite", "plan"): "whether tokens are made, not one of them",
    ("--host", "doctor"): "one of the plan's hosts, not an address to listen on",
    ("--port", "serve"): "the front's port, which may be 0 for any",
    ("--api-key", "serve"): "keys that the front accepts, not the one that a client sends",
}
"""Flags whose values differ too, with the reason."""


class Declaration(NamedTuple):
    """What a user sees of an option."""

    type: str
    metavar: str | None
    multiple: bool
    limits: tuple[object, object]
    help: str | None


def every_command(group: TyperGroup, prefix: str = "") -> Iterator[tuple[str, TyperCommand | TyperGroup]]:
    """All commands by full name, and the program itself as `zpptool`."""
    yield prefix.strip() or "zpptool", group
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from every_command(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command  # type: ignore[misc]


COMMANDS = dict(every_command(typer.main.get_command(app)))  # type: ignore[arg-type]


def options(command: TyperCommand | TyperGroup) -> list[TyperOption]:
    return [item for item in command.params if isinstance(item, TyperOption)]


def kind_without_none(annotation: object) -> str:
    """A type as text; one that may be None is the same to a person who types a value."""
    is_union = get_origin(annotation) in (Union, UnionType)
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType] if is_union else [annotation]
    return " | ".join(map(str, kinds))


def declarations() -> dict[str, dict[str, Declaration]]:
    """By long flag and command."""
    found: dict[str, dict[str, Declaration]] = {}
    for name, command in COMMANDS.items():
        written = inspect.unwrap(command.callback) if command.callback else None
        hints = get_type_hints(written, include_extras=True) if written else {}
        for option in (item for item in options(command) if item.name in hints):  # the others are typer's own
            kind, info = get_args(hints[option.name])[:2]
            limits = (info.min, info.max)
            shown = Declaration(kind_without_none(kind), option.metavar, option.multiple, limits, option.help)
            for flag in option.opts:
                if flag.startswith("--"):
                    found.setdefault(flag, {})[name] = shown
    return found


def test_no_flag_is_lost_and_a_new_one_is_recorded() -> None:
    flags = {
        name: sorted(flag for option in options(command) for flag in (*option.opts, *option.secondary_opts))
        for name, command in COMMANDS.items()
    }
    assert {name: own for name, own in flags.items() if own} == RECORDED, "record a new flag in tests/cli/flags.json"


@pytest.mark.parametrize(("flag", "by_command"), declarations().items(), ids=declarations())
def test_a_flag_is_the_same_in_every_command(flag: str, by_command: dict[str, Declaration]) -> None:
    same = [shown for name, shown in by_command.items() if not {(flag, name)} & {*OTHER_HELP, *OTHER_VALUE}]
    assert len(set(same)) <= 1, same
    usual = [shown._replace(help="") for name, shown in by_command.items() if (flag, name) not in OTHER_VALUE]
    assert len(set(usual)) <= 1, usual


@pytest.mark.parametrize(("flag", "command"), [*OTHER_HELP, *OTHER_VALUE])
def test_every_exception_is_one(flag: str, command: str) -> None:
    by_command = declarations()[flag]
    own = by_command.pop(command)
    assert own not in by_command.values() or all(
        (flag, name) in OTHER_HELP for name in by_command if own == by_command[name]
    )
    if (flag, command) in OTHER_VALUE:
        assert own._replace(help="") not in [shown._replace(help="") for shown in by_command.values()]
