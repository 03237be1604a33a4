# SPDX-License-Identifier: Apache-2.0
"""The plan of a pipeline: model, partition, addresses and engine arguments in one file that every stage reads.

A plan that was loaded is complete and typed, without unknown keys; `plan_faults` checks whether it can work. Its digest
identifies its content, so stages that were started from different plans are detected in the roll call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from zpptool.checkpoint.digest import digest_bytes
from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.model_config import read_config
from zpptool.checkpoint.stage_tensors import count_layers, index_digest, model_digest
from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.config.endpoints import StageEndpoints, is_host, is_link, open_ports, plan_endpoints, tcp_endpoint
from zpptool.config.engine_arguments import refuse_decided
from zpptool.config.engine_flags import check_engine_args
from zpptool.config.engine_kind import Engine
from zpptool.config.runs_on import UNDECIDED, RunsOn, StageWishes, place_faults
from zpptool.config.tensor_parallel import head_faults, size_faults
from zpptool.document import Count, read_yaml
from zpptool.errors import ZppError, invalid_error
from zpptool.file_names import holds_control
from zpptool.partition import Partition, check_ranges, parse_range, resolve_partition
from zpptool.wire.compression.adaptive import WireCodec

PLAN_VERSION = 1
MAX_PLAN_BYTES = 1 << 20


class PlannedStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One stage of a plan.

    Attributes:
        stage: its index.
        layers: its layer range, written `0-8`.
        host: the machine it runs on.
        bind: the endpoint that its sending link binds.
        connect: the endpoint that its receiving link connects to.
        weight_bytes: the size of its tensors.
        tensor_parallel_size: how many devices compute it together.
        runs_on: its device, image and resources.
    """

    stage: Count
    layers: str
    host: str
    bind: str
    connect: str
    weight_bytes: Count
    tensor_parallel_size: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)] = 1
    runs_on: RunsOn = UNDECIDED

    @property
    def endpoints(self) -> StageEndpoints:
        """Its addresses as `StageEndpoints`."""
        return StageEndpoints(self.stage, self.host, self.bind, self.connect)


class Continued(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The plan that a running pipeline was started with, in a plan whose stages or layers were moved since.

    Attributes:
        digest: of that plan; the running stages have it.
        besides: digest of everything that such a change keeps. A plan that differs in anything else is another one.
    """

    digest: str
    besides: str


class PipelinePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole pipeline.

    Attributes:
        schema_version: of the file.
        model: the checkpoint's directory, or `hf://org/name@commit`; a stage may be given its own directory instead
            when it is started.
        model_digest: the model's identity, the same for the checkpoint and for every stage directory split from it.
        num_layers: how many decoder layers it has.
        engine: what computes.
        dtype: of weights and activations; `auto` for the checkpoint's own.
        engine_args: for the engine, the same on every stage.
        api_port: where the OpenAI API listens, beside stage 0.
        stages: in order.
        wire_codec: whether links compress.
        invite_port: where invited stages redeem their tokens, on stage 0's host; unset in a plan without invites.
        continues: the plan that this one differs from only in the places of stages and layers; unset in a plan that
            no change has rewritten.
    """

    schema_version: Count
    model: str
    model_digest: str
    num_layers: Count
    engine: Engine
    dtype: str
    engine_args: tuple[str, ...]
    api_port: Count
    stages: tuple[PlannedStage, ...]
    wire_codec: WireCodec = WireCodec.NONE
    invite_port: Count | msgspec.UnsetType = msgspec.UNSET
    continues: Continued | msgspec.UnsetType = msgspec.UNSET

    @property
    def digest(self) -> str:
        """Identifies what all stages have to agree on, which is everything but what each runs on; where stages or
        layers have moved, that of the plan before."""
        if isinstance(self.continues, Continued) and self.continues.besides == self.besides:
            return self.continues.digest
        agreed = [msgspec.structs.replace(own, runs_on=UNDECIDED) for own in self.stages]
        return digest_bytes(msgspec.json.encode(msgspec.structs.replace(self, stages=tuple(agreed))))

    @property
    def besides(self) -> str:
        """Identifies the content of the plan except the places of stages and layers."""
        blank = [
            PlannedStage(
                stage=own.stage,
                layers="",
                host="",
                bind="",
                connect="",
                weight_bytes=0,
                tensor_parallel_size=own.tensor_parallel_size,
            )
            for own in self.stages
        ]
        plain = msgspec.structs.replace(self, stages=tuple(blank), continues=msgspec.UNSET)
        return digest_bytes(msgspec.json.encode(plain))

    @property
    def invite_address(self) -> str | None:
        """The endpoint at which invited stages redeem their tokens; None in a plan without invites."""
        if isinstance(self.invite_port, msgspec.UnsetType):
            return None
        return tcp_endpoint(self.stages[0].host, self.invite_port)

    @property
    def partition(self) -> Partition:
        """The layer ranges of all stages; raises ZppError (INVALID) where one is not a range."""
        return tuple(parse_range(place.layers) for place in self.stages)

    def to_yaml(self) -> str:
        """The plan as the content of its file."""
        return msgspec.yaml.encode(self).decode()


def make_plan(
    model: Path,
    *,
    source: str = "",
    num_stages: int | None = None,
    ranges: Sequence[str] | None = None,
    base_port: int,
    api_port: int,
    hosts: Sequence[str] | None = None,
    engine: Engine = Engine.VLLM,
    dtype: str = "auto",
    engine_args: Sequence[str] = (),
    wire_codec: WireCodec = WireCodec.NONE,
    wishes: StageWishes = StageWishes(),
    invite_port: int | None = None,
) -> PipelinePlan:
    """Plan a pipeline from config.json and the headers of the weights.

    Args:
        model: the full checkpoint, or its headers.
        source: what the plan names the model, where that is not a path: `hf://org/name@commit`.
        num_stages: how many stages, for an even partition.
        ranges: every stage's layer range.
        base_port, hosts: as `plan_endpoints`.
        api_port: as `open_ports`.
        engine, dtype, engine_args, wire_codec: as in `PipelinePlan`.
        wishes: each stage's tensor-parallel size, and what it runs on.
        invite_port: as in `PipelinePlan`; None for a plan without invites.

    Raises:
        ZppError: (INVALID) the checkpoint cannot be divided like that, among stages or among the ranks of one;
            (ADDRESS) ports or hosts are not valid; (USAGE) hosts, sizes or devices do not fit the stages, neither
            stages nor ranges are given, or an engine argument is zpptool's to decide, not known, or not supported.
    """
    refuse_decided(engine_args)
    check_engine_args(engine, engine_args)
    index = read_index(model)
    structure = infer_structure(index)
    partition = resolve_partition(structure.num_layers, num_stages, ranges)
    owned = assign(structure, partition).stages
    links = plan_endpoints(len(partition), base_port, hosts)
    open_ports(links, api_port, invite_port)
    sizes, places = wishes.sizes(len(partition)), wishes.places(len(partition))
    faults = [
        *size_faults(engine, sizes),
        *(fault for stage, place in enumerate(places) for fault in place_faults(stage, place)),
        *head_faults(read_config(model), dict(enumerate(sizes))),
    ]
    if faults:
        raise invalid_error("; ".join(faults), "Give other sizes or devices; the embedded engine has size 1 only.")
    return PipelinePlan(
        schema_version=PLAN_VERSION,
        model=source or str(model.resolve()),
        model_digest=index_digest(index),
        num_layers=structure.num_layers,
        engine=engine,
        dtype=dtype,
        engine_args=tuple(engine_args),
        api_port=api_port,
        stages=tuple(
            PlannedStage(
                stage=link.stage,
                layers=str(layers),
                host=link.host,
                bind=link.bind,
                connect=link.connect,
                weight_bytes=sum(index.tensors[name].nbytes for name in names),
                tensor_parallel_size=sizes[link.stage],
                runs_on=places[link.stage],
            )
            for link, layers, names in zip(links, partition, owned, strict=True)
        ),
        wire_codec=wire_codec,
        invite_port=msgspec.UNSET if invite_port is None else invite_port,
    )


def load_plan_file(path: Path) -> PipelinePlan:
    """Read a plan.

    Raises:
        ZppError: (INVALID) there is no such file, or it is not a plan; the message names the key at fault.
    """
    hint = "Write a plan with zpptool plan."
    try:
        plan = msgspec.convert(read_yaml(path, MAX_PLAN_BYTES, "plan", hint), PipelinePlan)
    except msgspec.MsgspecError as cause:
        raise invalid_error(f"{path} is not a plan: {cause}", hint) from cause
    if plan.schema_version != PLAN_VERSION:
        raise invalid_error(f"{path} has schema version {plan.schema_version}, this zpptool reads {PLAN_VERSION}")
    return plan


def plan_faults(plan: PipelinePlan, model: Path | None = None) -> list[str]:
    """Every reason why a plan cannot work; empty if it can.

    Args:
        plan: the plan.
        model: the model on this machine, to check it too; None where it is not here.
    """
    numbers = [place.stage for place in plan.stages]
    if numbers != list(range(len(numbers))) or not numbers:
        return [f"the stages are numbered {numbers}, not 0 to {len(numbers) - 1} in order"]
    words = _word_faults(plan)
    if words:
        return words
    try:
        check_engine_args(plan.engine, plan.engine_args)
    except ZppError as fault:
        return [fault.message]
    _ranges, range_faults = check_ranges([place.layers for place in plan.stages], plan.num_layers)
    return [
        *(fault.message for fault in range_faults),
        *size_faults(plan.engine, [place.tensor_parallel_size for place in plan.stages]),
        *_address_faults(plan),
        *(_model_faults(plan, model) if model is not None else ()),
    ]


def _word_faults(plan: PipelinePlan) -> list[str]:
    """What is not the kind of word that its key asks for: hosts name files, and all of these stand on command lines."""
    faults = [
        f"the {key} {text[:80]!r} is more than one line"
        for key, text in (("model", plan.model), ("dtype", plan.dtype))
        if holds_control(text)
    ]
    for place in plan.stages:
        if not is_host(place.host):
            faults.append(f"stage {place.stage} is on {place.host[:80]!r}, which is not a host name or an IP address")
        faults += [
            f"stage {place.stage} has the link {link[:80]!r}, which is neither tcp://HOST:PORT nor ipc://PATH"
            for link in (place.bind, place.connect)
            if not is_link(link)
        ]
        faults += place_faults(place.stage, place.runs_on)
    return faults


def _address_faults(plan: PipelinePlan) -> list[str]:
    faults = []
    senders: dict[str, int] = {}
    for place in plan.stages:
        before = plan.stages[place.stage - 1]
        if place.connect != before.bind:
            faults.append(
                f"stage {place.stage} connects to {place.connect}, but stage {before.stage} binds {before.bind}"
            )
        if place.bind in senders:
            faults.append(f"stages {senders[place.bind]} and {place.stage} both bind {place.bind}")
        senders.setdefault(place.bind, place.stage)
    try:
        invite_port = None if isinstance(plan.invite_port, msgspec.UnsetType) else plan.invite_port
        open_ports([place.endpoints for place in plan.stages], plan.api_port, invite_port)
    except (ZppError, ValueError) as fault:
        faults.append(str(fault))
    return faults


def _model_faults(plan: PipelinePlan, model: Path) -> list[str]:
    faults = []
    found = count_layers(model)
    if found != plan.num_layers:
        faults.append(f"the plan is for {plan.num_layers} layers, {model} has {found}")
    if model_digest(model) != plan.model_digest:
        faults.append(f"{model} is not the model that was planned for: another config or other tensors")
    sizes = {place.stage: place.tensor_parallel_size for place in plan.stages if place.tensor_parallel_size > 1}
    return [*faults, *head_faults(read_config(model), sizes)] if sizes else faults
