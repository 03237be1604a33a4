# SPDX-License-Identifier: Apache-2.0
"""The plan of a running pipeline after a planned change: a stage on another host, or layers in other stages.

Such a plan keeps the digest of the plan that the pipeline was started with, because the running stages hold that one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.config.endpoints import HIGHEST_PORT, tcp_endpoint
from zpptool.config.plan import Continued, PipelinePlan, PlannedStage, plan_faults
from zpptool.errors import ZppError, address_error, invalid_error, usage_error
from zpptool.partition import resolve_partition
from zpptool.sources.located import cached_model
from zpptool.sources.names import ModelName

_HOST = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]]+))(?::([0-9]{1,5}))?"  # a host, and perhaps a port
    r"|([0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)"  # an IPv6 address without one
)


def moved_plan(plan: PipelinePlan, stage: int, host: str, port: int | None) -> PipelinePlan:
    """The plan of the same running pipeline with one stage on another host.

    Args:
        plan: the plan before.
        stage: which one moves.
        host: its new host, as `--hosts` names a host.
        port: the port that it binds there; the same as before if None.

    Raises:
        ZppError: (USAGE) there is no such stage, or it cannot move; (INVALID) the new plan cannot work.
    """
    last = len(plan.stages) - 1
    if not 0 <= stage <= last:
        raise usage_error(f"the plan has no stage {stage}; it has {last + 1}, from 0 on")
    if stage == 0:
        raise usage_error(
            "stage 0 cannot be moved: the head runs beside it, and holds the requests",
            "Stop the pipeline (it answers what is under way), plan anew with other --hosts, and start it again.",
        )
    own = plan.stages[stage]
    bind = urlsplit(own.bind)
    if bind.scheme != "tcp" or bind.port is None:
        raise usage_error(f"stage {stage} sends from {own.bind}, which no other host reaches")
    address = tcp_endpoint(host, port or bind.port)
    after = 0 if stage == last else stage + 1
    places = list(plan.stages)
    places[stage] = msgspec.structs.replace(own, host=host, bind=address)
    places[after] = msgspec.structs.replace(places[after], connect=address)
    moved = _continued(plan, places)
    faults = plan_faults(moved)
    if faults:
        raise invalid_error("the plan cannot work with that: " + "; ".join(faults))
    if address == own.bind:
        raise usage_error(f"stage {stage} is at {address} already")
    return moved


def repartitioned_plan(plan: PipelinePlan, ranges: Sequence[str]) -> PipelinePlan:
    """The plan of the same running pipeline with layers moved between its stages.

    Args:
        plan: the plan before.
        ranges: every stage's layer range.

    Raises:
        ZppError: (INVALID) the checkpoint cannot be divided like that, or is not at the plan's path; (USAGE) the
            number of ranges is not that of the stages.
    """
    if len(ranges) != len(plan.stages):
        raise usage_error(
            f"{len(ranges)} ranges are given for {len(plan.stages)} stages: their number cannot change while they run",
            "Stop the pipeline, which answers what is under way, plan anew and start it again.",
        )
    partition = resolve_partition(plan.num_layers, len(ranges), list(ranges))
    index = read_index(_whole_model(plan))
    owned = assign(infer_structure(index), partition).stages
    places = [
        msgspec.structs.replace(
            place, layers=str(layers), weight_bytes=sum(index.tensors[name].nbytes for name in names)
        )
        for place, layers, names in zip(plan.stages, partition, owned, strict=True)
    ]
    return _continued(plan, places)


def _whole_model(plan: PipelinePlan) -> Path:
    """The directory of the plan's model on this machine.

    Raises:
        ZppError: (INVALID) it is not here whole: stages that fetched their own tensors cannot take others.
    """
    held = cached_model(ModelName(plan.model))
    if held is None:
        raise invalid_error(
            f"layers cannot be moved: {plan.model} is not whole on this machine, and fetched stages have their own"
            " tensors only",
            "Start the stages with the whole model on every machine (zpptool fetch org/name), or stop the pipeline,"
            " plan anew and start it again.",
        )
    return held.directory


def _continued(plan: PipelinePlan, places: Sequence[PlannedStage]) -> PipelinePlan:
    before = Continued(digest=plan.digest, besides=plan.besides)
    return msgspec.structs.replace(plan, stages=tuple(places), continues=before)


def host_and_port(text: str) -> tuple[str, int | None]:
    """`HOST` or `HOST:PORT` in its parts; an IPv6 address before a port is in brackets.

    Raises:
        ZppError: (ADDRESS) it is neither.
    """
    match = _HOST.fullmatch(text)
    if match is None or (match[3] and not 1 <= int(match[3]) <= HIGHEST_PORT):
        raise address_error(f"{text!r} is not of the form HOST or HOST:PORT", "For example 10.0.0.3 or 10.0.0.3:15551.")
    return match[1] or match[2] or match[4], int(match[3]) if match[3] else None


def rewrite_plan(path: Path, plan: PipelinePlan) -> None:
    """Replace the plan in a file atomically.

    Raises:
        ZppError: (FAILURE) it cannot be written; the file is unchanged.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(plan.to_yaml())
        beside.replace(path)
    except OSError as cause:
        beside.unlink(missing_ok=True)
        raise ZppError(f"{path} cannot be written: {cause.strerror}") from cause
