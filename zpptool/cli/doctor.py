# SPDX-License-Identifier: Apache-2.0
"""`zpptool doctor`: what keeps a pipeline from running on this machine, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from zpptool.cli.options import (
    ApiPortOption,
    BasePortOption,
    EngineOption,
    HostsOption,
    JsonOption,
    KeysOption,
    NumStagesOption,
    RevisionOption,
    TokenOption,
    comma_separated,
)
from zpptool.config.endpoints import DEFAULT_API_PORT, DEFAULT_BASE_PORT
from zpptool.config.engine_kind import Engine
from zpptool.console import Console
from zpptool.errors import ExitCode

if TYPE_CHECKING:
    from zpptool.doctor.finding import Finding


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL|PLAN]", help="A checkpoint (path or org/name), a split, or a plan."),
    ] = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="NAME", help="Which of the plan's hosts this is; detected if not given."),
    ] = None,
    num_stages: NumStagesOption = None,
    hosts: HostsOption = None,
    base_port: BasePortOption = DEFAULT_BASE_PORT,
    api_port: ApiPortOption = DEFAULT_API_PORT,
    engine: EngineOption = Engine.VLLM,
    keys: KeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: versions, devices, memory, ports, peers, keys, clock, the model; each with its fix.

    With a plan, or --num-stages and --hosts, the ports of this machine's stages are bound for a moment and the stages
    that they receive from are connected to. A stage that has not been started yet is a warning. Exit code 1: something
    keeps a pipeline from running.
    """
    from zpptool.doctor.checks import examine
    from zpptool.doctor.finding import blocked
    from zpptool.doctor.target import make_target

    examined = make_target(
        target,
        engine=engine,
        num_stages=num_stages,
        base_port=base_port,
        api_port=api_port,
        hosts=comma_separated(hosts),
        host=host,
        keys=keys,
        revision=revision,
        token=token,
    )
    findings = list(examine(examined))
    payload = {
        "healthy": not blocked(findings),
        "stages": list(examined.here),
        "findings": [asdict(finding) for finding in findings],
    }
    Console(as_json=as_json).result(payload, lambda out: _show(out, findings))
    if blocked(findings):
        raise typer.Exit(ExitCode.FAILURE)


def _show(out: Console, findings: Sequence[Finding]) -> None:
    out.table("", ("check", "", "found"), [(item.check, item.level, item.message) for item in findings])
    to_do = [item for item in findings if item.fix]
    for item in to_do:
        out.line(f"{item.level}: {item.check}: {item.fix}")
    count = sum(item.level == "blocker" for item in findings)
    out.line(
        f"{count} blocker(s), {len(to_do) - count} warning(s)" if to_do else "nothing keeps a pipeline from running"
    )
