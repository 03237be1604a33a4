# SPDX-License-Identifier: Apache-2.0
"""From what a user said about one stage to its spec; what was left unsaid is looked up or planned, never guessed twice.

A stage directory knows its place and its ranges. A full checkpoint knows its layer count. A stage that is told only
its own range does not know the others; they are filled up evenly, for vLLM has to be told a whole partition, and the
head checks the true ones in the roll call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from zpptool.checkpoint.manifest import is_stage_directory, load_manifest
from zpptool.checkpoint.stage_tensors import count_layers
from zpptool.config.endpoints import DEFAULT_BASE_PORT, StageEndpoints, open_ports, plan_endpoints
from zpptool.config.plan import PipelinePlan, plan_faults
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import address_error, invalid_error, usage_error
from zpptool.net.addresses import DEFAULT_HOST, is_loopback
from zpptool.partition import LayerRange, Partition, even_partition, parse_range, resolve_partition

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class StagePlace:
    """Where a stage stands and what it reads.

    Attributes:
        directory: the stage's own directory, or the full checkpoint.
        stage: its place.
        partition: every stage's layer range.
    """

    directory: Path
    stage: int
    partition: Partition


def resolve_place(
    model: Path,
    *,
    stage: int | None = None,
    num_stages: int | None = None,
    layer_range: str | None = None,
    ranges: Sequence[str] = (),
) -> StagePlace:
    """Find out which stage this is, of how many, and which layers each owns.

    Args:
        model: a stage directory, a directory of stages as `split` writes them, or a full checkpoint.
        stage: the stage's place, where the directory does not say it.
        num_stages: how many stages there are, where neither the directory nor `ranges` says it.
        layer_range: this stage's own range.
        ranges: every stage's range.

    Raises:
        ZppError: (USAGE) something is missing or said twice differently; (INVALID) ranges or directory are wrong.
    """
    directory = stage_directory(model, stage)
    if is_stage_directory(directory):
        place = _place_of_directory(directory)
        _refuse_contradictions(place, stage, num_stages, layer_range, ranges)
        return place
    if stage is None:
        raise usage_error(f"{directory} is a full checkpoint: which stage is this to be?", "Give --stage-idx.")
    if num_stages is None:
        num_stages = len(ranges)
    if num_stages < 1:
        raise usage_error("how many stages does the pipeline have?", "Give --total-stages.")
    if not 0 <= stage < num_stages:
        raise usage_error(f"there is no stage {stage} of {num_stages}: the first is stage 0, the last {num_stages - 1}")
    num_layers = count_layers(directory)
    if layer_range is not None and not ranges:
        return StagePlace(directory, stage, partition_around(parse_range(layer_range), stage, num_stages, num_layers))
    partition = resolve_partition(num_layers, num_stages, list(ranges) or None)
    if layer_range is not None and parse_range(layer_range) != partition[stage]:
        raise invalid_error(
            f"the layer range is said to be {parse_range(layer_range)}, but of the ranges {_spoken(partition)} stage"
            f" {stage} owns {partition[stage]}"
        )
    return StagePlace(directory, stage, partition)


def spec_of_plan(plan: PipelinePlan, stage: int | None, model: Path | None) -> StageSpec:
    """The spec of one stage of a plan.

    Args:
        plan: the plan.
        stage: which of its stages.
        model: the stage's own directory, or where the checkpoint lies on this machine; the plan's own if None.

    Raises:
        ZppError: (USAGE) no stage is named; (INVALID) the plan cannot work, or the model is not the one planned for.
    """
    if stage is None:
        raise usage_error("which stage of the plan is this?", "Give --stage-idx.")
    if not 0 <= stage < len(plan.stages):
        raise usage_error(f"the plan has no stage {stage}; it has {len(plan.stages)}, from 0 on")
    directory = stage_directory(model or Path(plan.model), stage)
    faults = plan_faults(plan, directory)
    if faults:
        raise invalid_error("the plan cannot work: " + "; ".join(faults), "zpptool validate FILE lists this too.")
    if is_stage_directory(directory):
        place = _place_of_directory(directory)
        _refuse_contradictions(place, stage, len(plan.stages), None, [str(own) for own in plan.partition])
    own = plan.stages[stage]
    return StageSpec(
        engine=plan.engine,
        model=str(directory),
        partition=tuple((layers.start, layers.end) for layers in plan.partition),
        stage=stage,
        bind=own.bind,
        connect=own.connect,
        dtype=plan.dtype,
        api_host=own.host,
        api_port=plan.api_port,
        engine_args=plan.engine_args,
        plan_digest=plan.digest,
        wire_codec=plan.wire_codec,
    )


def stage_directory(model: Path, stage: int | None) -> Path:
    """`model` itself, or the directory of `stage` in it when it holds stages as `split` writes them."""
    inside = sorted(path.parent for path in model.glob("stage_*/zpp-stage.json"))
    if not inside:
        return model
    if stage is None:
        raise usage_error(f"{model} holds {len(inside)} stages: which one is this?", "Give --stage-idx.")
    wanted = model / f"stage_{stage}"
    if wanted not in inside:
        raise invalid_error(f"{model} holds no stage_{stage}; it holds {', '.join(path.name for path in inside)}")
    return wanted


def partition_around(own: LayerRange, stage: int, num_stages: int, num_layers: int) -> Partition:
    """A whole partition in which `stage` owns `own` and the stages on either side share the rest evenly.

    Raises:
        ZppError: (INVALID) no partition can have that range at that place.
    """
    before, after = stage, num_stages - stage - 1
    rest = num_layers - own.end
    fits = own.count > 0 and own.start >= before and rest >= after
    if not fits or (before == 0) != (own.start == 0) or (after == 0) != (rest == 0):
        raise invalid_error(
            f"stage {stage} of {num_stages} cannot own layers {own} of {num_layers}: each of the {before} stages before"
            f" it and the {after} after it needs at least one layer, and none may be left over"
        )
    head = even_partition(own.start, before) if before else ()
    tail = even_partition(rest, after) if after else ()
    return (*head, own, *(LayerRange(part.start + own.end, part.end + own.end) for part in tail))


def resolve_links(
    stage: int,
    num_stages: int,
    *,
    bind: str | None = None,
    connect: str | None = None,
    bind_host: str | None = None,
    bind_port: int | None = None,
    previous: str | None = None,
    base_port: int = DEFAULT_BASE_PORT,
    hosts: Sequence[str] | None = None,
) -> tuple[str, str]:
    """The endpoints that a stage binds and connects to; what is not said is as `plan-ports` plans it.

    Args:
        bind: the whole endpoint to bind; instead of the two that follow.
        connect: the whole endpoint to connect to; instead of `previous`.
        bind_host: the address to bind at; the stage's own host in `hosts` if None.
        bind_port: the port to bind.
        previous: `host:port` of the stage before (of the last stage, on stage 0).
        base_port: the plan's first port.
        hosts: the plan's hosts.

    Raises:
        ZppError: (ADDRESS) a port or an address cannot be; (USAGE) hosts do not fit the stages, or an address is said
            twice.
    """
    if bind is not None and (bind_host, bind_port) != (None, None):
        raise usage_error("the address to bind is given twice", "Say --bind, or --bind-host and --local-bind-port.")
    if connect is not None and previous is not None:
        raise usage_error("the address to connect to is given twice", "Say --connect or the stage before, not both.")
    planned = plan_endpoints(num_stages, base_port, hosts)[stage]
    if bind is None:
        if bind_port is not None and not 1 <= bind_port <= 65535:
            raise address_error(f"the port to bind, {bind_port}, does not lie between 1 and 65535")
        planned_host, _, planned_port = planned.bind.removeprefix("tcp://").rpartition(":")
        bind = f"tcp://{_bracketed(bind_host or planned_host)}:{bind_port or planned_port}"
    if connect is None:
        connect = planned.connect if previous is None else f"tcp://{host_port(previous)}"
    if bind == connect and num_stages > 1:
        raise address_error(
            f"stage {stage} is to bind {bind} and to connect to the same address",
            "On one host every stage binds a port of its own, the base port + its place: see zpptool plan-ports.",
        )
    return bind, connect


def refuse_api_port(
    bind: str,
    connect: str,
    num_stages: int,
    api_port: int,
    base_port: int = DEFAULT_BASE_PORT,
    hosts: Sequence[str] | None = None,
) -> None:
    """Refuse an API port that cannot be, or at which a link of stage 0's machine is.

    Args:
        bind: what stage 0 binds.
        connect: what the head connects to.
        num_stages: how many there are.
        api_port: the port.
        base_port: the plan's first port. Where stage 0's links are as planned, the others are taken to be so too.
        hosts: the plan's hosts.

    Raises:
        ZppError: (ADDRESS) it cannot be used.
    """
    links = plan_endpoints(num_stages, base_port, hosts)
    if (bind, connect) != (links[0].bind, links[0].connect):
        ends = [(0, bind)] if num_stages == 1 else [(0, bind), (num_stages - 1, connect)]
        links = tuple(StageEndpoints(stage, _machine_of(end, bind), end, connect="") for stage, end in ends)
    open_ports(links, api_port)


def host_port(text: str) -> str:
    """`host:port` as it was given, checked; `tcp://` before it is allowed.

    Raises:
        ZppError: (ADDRESS) it is not of that form.
    """
    match = _HOST_PORT.fullmatch(text.strip().removeprefix("tcp://"))
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise address_error(f"{text!r} is not an address of the form HOST:PORT", "For example 10.0.0.2:15550.")
    return match[0]


def _machine_of(endpoint: str, own: str) -> str:
    """The host of an endpoint; `DEFAULT_HOST` where it is the machine of the stage that binds `own`."""
    host = urlsplit(endpoint).hostname or DEFAULT_HOST
    return DEFAULT_HOST if is_loopback(host) or host == urlsplit(own).hostname else host


def _bracketed(host: str) -> str:
    """A host as an endpoint has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _place_of_directory(directory: Path) -> StagePlace:
    manifest = load_manifest(directory)
    return StagePlace(directory, manifest.stage, manifest.ranges)


def _refuse_contradictions(
    place: StagePlace, stage: int | None, num_stages: int | None, layer_range: str | None, ranges: Sequence[str]
) -> None:
    own = None if layer_range is None else parse_range(layer_range)
    every = _spoken([parse_range(text) for text in ranges]) or None
    told: list[tuple[str, object, object]] = [
        ("stage", stage, place.stage),
        ("number of stages", num_stages, len(place.partition)),
        ("layer range", own, place.partition[place.stage]),
        ("partition", every, _spoken(place.partition)),
    ]
    for what, said, true in told:
        if said is not None and said != true:
            raise invalid_error(f"the {what} is said to be {said}, but {place.directory} has {true}")


def _spoken(ranges: Sequence[LayerRange]) -> str:
    return " ".join(map(str, ranges))


def head_endpoint(return_link: str, given: str | None = None) -> str:
    """The endpoint that the head binds and stage 0 connects to.

    Args:
        return_link: what the head connects to, `tcp://HOST:PORT`.
        given: `HOST:PORT` where the user says so; otherwise the port after the return port, on this machine.

    Raises:
        ZppError: (ADDRESS) it is no address, or nothing follows from the return link.
    """
    if given is not None:
        return f"tcp://{host_port(given)}"
    _, _, port = return_link.removeprefix("tcp://").rpartition(":")
    if not return_link.startswith("tcp://") or not port.isdecimal() or int(port) >= 65535:
        raise address_error(f"no port for the head follows from the return link {return_link}", "Give --head-addr.")
    return f"tcp://{DEFAULT_HOST}:{int(port) + 1}"
