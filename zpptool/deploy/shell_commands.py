# SPDX-License-Identifier: Apache-2.0
"""A plan by hand: for each host, the command lines to run there and the ports to open there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from zpptool.config.endpoints import FirewallRule, firewall_rules, keys_flags
from zpptool.config.plan import PipelinePlan, PlannedStage


@dataclass(frozen=True)
class HostCommands:
    """What to do on one host.

    Attributes:
        host: the machine.
        commands: one command line a stage, to be run as it is, in the directory that holds the plan.
        rules: the ports to open there.
    """

    host: str
    commands: tuple[str, ...]
    rules: tuple[FirewallRule, ...]


def orders(plan: PipelinePlan, plan_file: Path) -> tuple[HostCommands, ...]:
    """What to do on each host, in the order of the stages.

    Args:
        plan: the plan.
        plan_file: the name that its file has on every host.
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
    """The command line that runs a stage, in the directory that holds the plan."""
    words = ["zpptool", "run-stage", "--plan", str(plan_file), "--stage-idx", str(place.stage)]
    return shlex.join(words + keys_flags(place.endpoints))
