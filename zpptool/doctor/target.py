# SPDX-License-Identifier: Apache-2.0
"""What is to run on this machine, as far as the user said: every check looks at its own part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zpptool.checkpoint.hub import hub_id
from zpptool.config.endpoints import StageEndpoints, plan_endpoints
from zpptool.config.engine_kind import Engine
from zpptool.config.plan import PipelinePlan, PlannedStage, load_plan_file
from zpptool.config.port_probe import probed_hosts
from zpptool.errors import usage_error


@dataclass(frozen=True)
class Target:
    """The machine's part in a pipeline.

    Attributes:
        engine: what is to compute.
        model: a directory, or a model on the Hub; None where none is named.
        plan: the plan, where there is one.
        endpoints: every stage's addresses; none where no pipeline is named.
        here: the numbers of the stages of this machine.
        api_port: where the API is to listen, if stage 0 is of this machine.
        keys: the key file of this machine's stage, or a directory of them.
    """

    engine: Engine
    model: str | None = None
    plan: PipelinePlan | None = None
    endpoints: tuple[StageEndpoints, ...] = ()
    here: tuple[int, ...] = ()
    api_port: int | None = None
    keys: Path | None = None

    @property
    def places(self) -> tuple[PlannedStage, ...]:
        """What the plan says of the stages of this machine."""
        return tuple(self.plan.stages[stage] for stage in self.here) if self.plan else ()

    @property
    def directory(self) -> Path | None:
        """The model, if it is a directory."""
        return Path(self.model) if self.model and hub_id(self.model) is None else None


def make_target(
    target: str | None,
    *,
    engine: Engine,
    num_stages: int | None,
    base_port: int,
    api_port: int,
    hosts: Sequence[str] | None,
    host: str | None,
    keys: Path | None,
) -> Target:
    """Put together what the user said.

    Args:
        target: a plan's file, a model, or nothing.
        host: which of the pipeline's hosts this machine is; found out from its addresses if None.

    Raises:
        ZppError: (USAGE) the host is none of the pipeline's; (INVALID) the file is no plan; (ADDRESS) as
            `plan_endpoints`.
    """
    plan = load_plan_file(Path(target)) if target is not None and Path(target).is_file() else None
    endpoints: tuple[StageEndpoints, ...] = ()
    if plan is not None:
        endpoints = tuple(place.endpoints for place in plan.stages)
        api_port = plan.api_port
    elif num_stages is not None or hosts:
        endpoints = plan_endpoints(num_stages or len(hosts or ()), base_port, hosts)
    known = list(dict.fromkeys(item.host for item in endpoints))
    if host is not None and host not in known:
        raise usage_error(
            f"{host} is no host of the pipeline; it has {', '.join(known) or 'none'}", "Name one of them."
        )
    own = [host] if host is not None else probed_hosts(endpoints)
    here = tuple(item.stage for item in endpoints if item.host in own)
    return Target(
        engine=plan.engine if plan else engine,
        model=plan.model if plan else target,
        plan=plan,
        endpoints=endpoints,
        here=here,
        api_port=api_port if 0 in here else None,
        keys=keys,
    )
