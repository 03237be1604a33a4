# SPDX-License-Identifier: Apache-2.0
"""Put the model of one stage on this machine: what a user named, or what the plan names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zpptool.config.plan import PipelinePlan, load_plan_file
from zpptool.config.resolve import stage_partition, which_stage
from zpptool.config.stage_options import StageOptions
from zpptool.console import Console
from zpptool.errors import invalid_error
from zpptool.partition import Partition
from zpptool.sources.located import stage_model
from zpptool.sources.names import HubId, ModelName, parse_remote


def with_model(
    options: StageOptions, text: str | None, revision: str | None, token: str | None, console: Console
) -> StageOptions:
    """The options with the model's directory, its source, and the name by which it is served.

    Args:
        options: of the stage; `model` in it is not read.
        text: the model as the user named it; None for the plan's own.
        revision, token: as in `ModelName`.
        console: shows the progress of what is fetched.

    Raises:
        ZppError: as `stage_model`; (USAGE) it is not known which stage this is; (INVALID) the model is named at
            another commit than the plan's.
    """
    plan = load_plan_file(options.plan_file) if options.plan_file is not None else None
    if text is None:
        assert plan is not None
        model = ModelName(plan.model, revision, token)
    else:
        model = _pinned(ModelName(text, revision, token), plan)
    if model.remote is None:
        return replace(options, model=Path(model.text))
    stage = which_stage(options.stage, model.text)

    def choose(num_layers: int) -> Partition:
        if plan is not None:
            return plan.partition
        return stage_partition(
            num_layers,
            stage,
            num_stages=options.num_stages,
            layer_range=options.layer_range,
            ranges=options.ranges,
        )

    found = stage_model(model, stage, choose, console)
    return replace(options, model=found.directory, source=found.source, served_name=found.served)


def _pinned(model: ModelName, plan: PipelinePlan | None) -> ModelName:
    """The model at the commit of the plan, where both name the same repository and the user names no commit."""
    planned = parse_remote(plan.model) if plan is not None else None
    named = model.remote
    if not isinstance(planned, HubId) or not isinstance(named, HubId) or planned.repo != named.repo:
        return model
    if named.revision in (None, planned.revision):
        return ModelName(planned.at(planned.wanted), None, model.token)
    raise invalid_error(
        f"{model.text} is named at {named.revision}, and the plan is for {planned.at(planned.wanted)}",
        "Leave the revision out, or make a plan for it.",
    )
