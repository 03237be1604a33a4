# SPDX-License-Identifier: Apache-2.0
"""What the doctor examines: the engine, model and stages that the user named for this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zpptool.config.endpoints import StageEndpoints, plan_endpoints
from zpptool.config.engine_kind import Engine
from zpptool.config.plan import PipelinePlan, PlannedStage, load_plan_file
from zpptool.config.port_probe import probed_hosts
from zpptool.errors import usage_error
from zpptool.sources.names import ModelName


@dataclass(frozen=True)
class Target:
    """This machine's part of a pipeline.

    Attributes:
        engine: the engine that computes the stages.
        model: a path, or a model on the Hub or at a URL; None if not given.
        plan: the plan; None if not given.
        endpoints: the addresses of all stages; empty if no pipeline is given.
        here: the numbers of the stages of this machine.
        api_port: port of the API, if stage 0 is on this machine; else None.
        keys: the key file of this machine's stage, or a directory of key files; None if not given.
    """

    engine: Engine
    model: ModelName | None = None
    plan: PipelinePlan | None = None
    endpoints: tuple[StageEndpoints, ...] = ()
    here: tuple[int, ...] = ()
    api_port: int | None = None
    keys: Path | None = None

    @property
    def places(self) -> tuple[PlannedStage, ...]:
        """The stages of this machine, as planned; empty without a plan."""
        return tuple(self.plan.stages[stage] for stage in self.here) if self.plan else ()

    @property
    def directory(self) -> Path | None:
        """The model's path; None for a model beyond this machine, or for none."""
        return Path(self.model.text) if self.model and self.model.remote is None else None


def make_target(
    model_or_plan: str | None,
    *,
    engine: Engine,
    num_stages: int | None,
    base_port: int,
    api_port: int,
    hosts: Sequence[str] | None,
    host: str | None,
    keys: Path | None,
    revision: str | None = None,
    token: str | None = None,
) -> Target:
    """Build the target from the command's arguments.

    Args:
        model_or_plan: path of a plan file, or a model; None for neither.
        engine: the engine; a plan's own takes precedence.
        num_stages: number of stages, if there is no plan.
        base_port: first port of the stages, if there is no plan.
        api_port: port of the API; a plan's own takes precedence.
        hosts: the hosts of the stages, if there is no plan.
        host: which of the pipeline's hosts this machine is; None to detect it from its addresses.
        keys: a key file, or a directory of key files.
        revision, token: of a model on the Hub.

    Raises:
        ZppError: (USAGE) the host is not one of the pipeline's; (INVALID) the file is not a plan; (ADDRESS) as
            `plan_endpoints`.
    """
    named = Path(model_or_plan) if model_or_plan is not None else None
    plan = load_plan_file(named) if named is not None and named.is_file() else None
    endpoints: tuple[StageEndpoints, ...] = ()
    if plan is not None:
        endpoints = tuple(place.endpoints for place in plan.stages)
        api_port = plan.api_port
    elif num_stages is not None or hosts:
        endpoints = plan_endpoints(num_stages or len(hosts or ()), base_port, hosts)
    known = list(dict.fromkeys(item.host for item in endpoints))
    if host is not None and host not in known:
        raise usage_error(
            f"{host} is not a host of the pipeline; it has {', '.join(known) or 'none'}", "Name one of them."
        )
    local_hosts = [host] if host is not None else probed_hosts(endpoints)
    here = tuple(item.stage for item in endpoints if item.host in local_hosts)
    text = plan.model if plan else model_or_plan
    return Target(
        engine=plan.engine if plan else engine,
        model=ModelName(text, revision, token) if text else None,
        plan=plan,
        endpoints=endpoints,
        here=here,
        api_port=api_port if 0 in here else None,
        keys=keys,
    )
