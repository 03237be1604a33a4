# SPDX-License-Identifier: Apache-2.0
"""Run a plan by hand: for each host, the command lines to run there and the ports to open there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zpptool.config.endpoints import FirewallRule, firewall_rules, keys_flags
from zpptool.config.plan import PipelinePlan, PlannedStage
from zpptool.config.plan_gpus import gpus_on_host


@dataclass(frozen=True)
class HostCommands:
    """The commands and firewall rules of one host.

    Attributes:
        host: the host, as in the plan.
        commands: one shell command line per stage, to be run in the directory that holds the plan.
        rules: the ports to open there.
    """

    host: str
    commands: tuple[str, ...]
    rules: tuple[FirewallRule, ...]


def host_commands(plan: PipelinePlan, plan_file: Path, invites: Sequence[str] = ()) -> tuple[HostCommands, ...]:
    """Return the commands and firewall rules of each host, in stage order.

    Args:
        plan: the plan.
        plan_file: name of the plan's file on every host.
        invites: what `run-stage --invite` gets on each stage's host, instead of plan and keys; empty for no invites.
    """
    port = plan.invite_port if isinstance(plan.invite_port, int) else None
    rules = firewall_rules([place.endpoints for place in plan.stages], plan.api_port, port)
    found = []
    for host in dict.fromkeys(place.host for place in plan.stages):
        places = [place for place in plan.stages if place.host == host]
        gpus = gpus_on_host(places, "cpu") if len(places) > 1 else {}  # a stage alone takes the first that it sees
        found.append(
            HostCommands(
                host,
                tuple(
                    invited_command(invites[place.stage], gpus.get(place.stage, ()))
                    if invites
                    else stage_command(plan_file, place, gpus.get(place.stage, ()))
                    for place in places
                ),
                tuple(rule for rule in rules if rule.host == host),
            )
        )
    return tuple(found)


def stage_command(plan_file: Path, place: PlannedStage, gpus: Sequence[int] = ()) -> str:
    """Return the shell command line that runs a stage, for the directory that holds the plan.

    Args:
        plan_file: name of the plan's file.
        place: the stage.
        gpus: the numbers of its GPUs; empty for those that it sees.
    """
    command = ["zpptool", "run-stage", "--plan", str(plan_file), "--stage-idx", str(place.stage)]
    return shlex.join([*command, *_chosen(gpus), *keys_flags(place.endpoints)])


def invited_command(invite: str, gpus: Sequence[int] = ()) -> str:
    """Return the shell command line that runs an invited stage.

    Args:
        invite: the token, or the name of its file.
        gpus: as for `stage_command`.
    """
    return shlex.join(["zpptool", "run-stage", "--invite", invite, *_chosen(gpus)])


def _chosen(gpus: Sequence[int]) -> list[str]:
    return ["--gpu-ids", ",".join(map(str, gpus))] if gpus else []
