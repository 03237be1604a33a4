# SPDX-License-Identifier: Apache-2.0
"""Run a plan by hand: for each host, the command lines to run there and the ports to open there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from zpptool.config.endpoints import FirewallRule, firewall_rules, keys_flags
from zpptool.config.plan import PipelinePlan, PlannedStage


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


def host_commands(plan: PipelinePlan, plan_file: Path) -> tuple[HostCommands, ...]:
    """Return the commands and firewall rules of each host, in stage order.

    Args:
        plan: the plan.
        plan_file: name of the plan's file on every host.
    """
    rules = firewall_rules([place.endpoints for place in plan.stages], plan.api_port)
    return tuple(
        HostCommands(
            host,
            tuple(stage_command(plan_file, place) for place in plan.stages if place.host == host),
            tuple(rule for rule in rules if rule.host == host),
        )
        for host in dict.fromkeys(place.host for place in plan.stages)
    )


def stage_command(plan_file: Path, place: PlannedStage) -> str:
    """Return the shell command line that runs a stage, for the directory that holds the plan."""
    command = ["zpptool", "run-stage", "--plan", str(plan_file), "--stage-idx", str(place.stage)]
    return shlex.join(command + keys_flags(place.endpoints))
