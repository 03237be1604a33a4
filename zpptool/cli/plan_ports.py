# SPDX-License-Identifier: Apache-2.0
"""`zpptool plan-ports`: the addresses of each stage, its flags, what to open in a firewall, and whether it is free."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from zpptool.cli.options import (
    ApiPortOption,
    BasePortOption,
    HostsOption,
    JsonOption,
    RequiredNumStagesOption,
    comma_separated,
)
from zpptool.config.endpoints import (
    DEFAULT_API_PORT,
    DEFAULT_BASE_PORT,
    HIGHEST_PRIVILEGED_PORT,
    StageEndpoints,
    firewall_rules,
    open_ports,
    plan_endpoints,
    stage_flags,
)
from zpptool.config.port_probe import PortFault, probe_ports, probed_hosts
from zpptool.console import Console
from zpptool.errors import ExitCode


def plan_ports(
    num_stages: RequiredNumStagesOption,
    base_port: BasePortOption = DEFAULT_BASE_PORT,
    hosts: HostsOption = None,
    transport: Annotated[
        Literal["tcp", "ipc"], typer.Option("--transport", help="ipc links stages of one host by socket files.")
    ] = "tcp",
    ipc_dir: Annotated[
        Path | None, typer.Option("--ipc-dir", metavar="DIR", help="The directory of ipc's socket files.")
    ] = None,
    api_port: ApiPortOption = DEFAULT_API_PORT,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Bind every port that belongs to this machine, and name the processes in the way."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Plan the addresses of a pipeline: endpoints, the flags of each stage, and the ports to open.

    The sender binds, the receiver connects. Stages that share a host bind base + i; a stage alone on its host binds the
    base port; the last stage binds the return port, base + N. To serve more, replicate whole pipelines, never one
    stage: a stage holds its requests' KV cache, and a link has one receiver.
    """
    endpoints = plan_endpoints(num_stages, base_port, comma_separated(hosts), transport, ipc_dir)
    opened = open_ports(endpoints, api_port)
    faults = probe_ports(endpoints, api_port) if check else []
    payload = {
        "num_stages": num_stages,
        "base_port": base_port,
        "return_port": base_port + num_stages,
        "api_port": api_port,
        "stages": [
            {"stage": item.stage, "host": item.host, "bind": item.bind, "connect": item.connect} for item in endpoints
        ],
        "open_ports": opened,
    }
    if check:
        payload["checked_hosts"] = probed_hosts(endpoints)
        payload["faults"] = [
            {"address": fault.address, "message": fault.message, "pid": fault.pid, "process": fault.process}
            for fault in faults
        ]
    console = Console(as_json=as_json)
    _warn_of_privileged(console, opened)
    console.result(payload, lambda out: _show(out, endpoints, api_port, faults if check else None))
    if faults:
        raise typer.Exit(ExitCode.ADDRESS)


def _warn_of_privileged(console: Console, opened: Mapping[str, Sequence[int]]) -> None:
    privileged = sorted({port for numbers in opened.values() for port in numbers if port <= HIGHEST_PRIVILEGED_PORT})
    if privileged:
        console.warn(f"only a privileged process may bind {', '.join(map(str, privileged))}: below 1024")


def _show(
    out: Console,
    endpoints: Sequence[StageEndpoints],
    api_port: int,
    faults: Sequence[PortFault] | None,
) -> None:
    rows = [(item.stage, item.host, item.bind, item.connect) for item in endpoints]
    out.table(f"{len(endpoints)} stages", ("stage", "host", "binds", "connects to"), rows, right=("stage",))
    out.line("Each stage, after its model and layers:")
    for item in endpoints:
        out.line(f"  zpptool run-stage {shlex.join(stage_flags(item, len(endpoints), api_port))}")
    rules = firewall_rules(endpoints, api_port)
    out.line("\nTo open in a firewall:" if rules else "\nNothing to open in a firewall: no link leaves its host.")
    for rule in rules:
        out.line(f"  {rule}")
    if faults is None:
        return
    out.line(f"\nChecked on this machine: {', '.join(probed_hosts(endpoints)) or 'none of the hosts'}")
    for fault in faults:
        out.line(f"  {fault.message}")
    out.line(
        "  end the processes in the way, or choose another --base-port" if faults else "  every address can be bound"
    )
