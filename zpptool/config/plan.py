# SPDX-License-Identifier: Apache-2.0
"""The plan of a pipeline: model, partition, addresses and engine arguments in one file that every stage reads.

A plan that was loaded is whole and typed, with no key that is not known; whether it can work is for `plan_faults` to
say. Its digest stands for its content, so stages that were started from different plans find out in the roll call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from zpptool.checkpoint.config import text_config
from zpptool.checkpoint.digest import digest_bytes
from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.stage_tensors import count_layers, index_digest, model_digest
from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.config.endpoints import StageEndpoints, is_host, is_link, open_ports, plan_endpoints
from zpptool.config.engine_kind import Engine
from zpptool.document import Count, read_yaml
from zpptool.errors import ZppError, address_error, invalid_error, usage_error
from zpptool.file_names import holds_control
from zpptool.partition import LayerRange, Partition, check_ranges, parse_range, resolve_partition
from zpptool.wire.compression.adaptive import WireCodec

PLAN_VERSION = 1
MAX_PLAN_BYTES = 1 << 20
_HOST = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]]+))(?::([0-9]{1,5}))?"  # a host, and perhaps a port
    r"|([0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)"  # an IPv6 address without one
)




class PlannedStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stage of a plan.

    Attributes:
        stage: its number.
        layers: its layer range, written `0-8`.
        host: the machine it runs on.
        bind: the endpoint that it sends from.
        connect: the endpoint that it receives from.
        weight_bytes: what its tensors take.
    """

    stage: Count
    layers: str
    host: str
    bind: str
    connect: str
    weight_bytes: Count

    @property
    def endpoints(self) -> StageEndpoints:
        """Its addresses, as `ports` knows them."""
        return StageEndpoints(self.stage, self.host, self.bind, self.connect)


class Continued(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The plan that a pipeline was started with, of which stages or layers have moved while it ran.

    Attributes:
        digest: of that plan; the running stages have it.
        besides: stands for all that such a change leaves alone. A plan that differs in anything else is another one.
    """

    digest: str
    besides: str


class PipelinePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole pipeline.

    Attributes:
        schema_version: of the file.
        model: the checkpoint's directory; a stage may be given its own directory instead when it is started.
        model_digest: the model's identity, the same for the checkpoint and for every stage directory split from it.
        num_layers: how many decoder layers it has.
        engine: what computes.
        dtype: of weights and activations; `auto` for the checkpoint's own.
        engine_args: for the engine, the same on every stage.
        api_port: where the OpenAI API listens, beside stage 0.
        stages: in order.
        wire_codec: whether links compress.
        continues: the plan that this one differs from only in where stages and layers are; unset where it is the
            first.
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
    continues: Continued | msgspec.UnsetType = msgspec.UNSET

    @property
    def digest(self) -> str:
        """Stands for all that the plan says; where stages or layers have moved, for the plan before."""
        if isinstance(self.continues, Continued) and self.continues.besides == self.besides:
            return self.continues.digest
        return digest_bytes(msgspec.json.encode(self))

    @property
    def besides(self) -> str:
        """Stands for all that the plan says but where its stages and layers are."""
        nowhere = [
            PlannedStage(stage=own.stage, layers="", host="", bind="", connect="", weight_bytes=0)
            for own in self.stages
        ]
        plain = msgspec.structs.replace(self, stages=tuple(nowhere), continues=msgspec.UNSET)
        return digest_bytes(msgspec.json.encode(plain))

    @property
    def partition(self) -> Partition:
        """The layer ranges of all stages; raises ZppError (INVALID) where one is no range."""
        return tuple(parse_range(place.layers) for place in self.stages)

    def to_yaml(self) -> str:
        """The plan as its file holds it."""
        return msgspec.yaml.encode(self).decode()


def make_plan(
    model: Path,
    *,
    num_stages: int | None = None,
    ranges: Sequence[str] | None = None,
    base_port: int,
    api_port: int,
    hosts: Sequence[str] | None = None,
    engine: Engine = Engine.VLLM,
    dtype: str = "auto",
    engine_args: Sequence[str] = (),
    wire_codec: WireCodec = WireCodec.NONE,
) -> PipelinePlan:
    """Plan a pipeline from config.json and the headers of the weights.

    Raises:
        ZppError: (INVALID) the checkpoint cannot be cut so; (ADDRESS) ports or hosts cannot be; (USAGE) hosts do not
            fit the stages, or neither stages nor ranges are given.
    """
    index = read_index(model)
    structure = infer_structure(index)
    partition = resolve_partition(structure.num_layers, num_stages, ranges)
    owned = assign(structure, partition).stages
    links = plan_endpoints(len(partition), base_port, hosts)
    open_ports(links, api_port)
    return PipelinePlan(
        schema_version=PLAN_VERSION,
        model=str(model.resolve()),
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
            )
            for link, layers, names in zip(links, partition, owned, strict=True)
        ),
        wire_codec=wire_codec,
    )


def moved_plan(plan: PipelinePlan, stage: int, host: str, port: int | None) -> PipelinePlan:
    """The plan of the same running pipeline with one stage on another host.

    Args:
        plan: the plan before.
        stage: which one moves.
        host: where to, as `--hosts` names a host.
        port: the port that it sends from there; the one that it had if None.

    Raises:
        ZppError: (USAGE) that stage is not there, or cannot move; (INVALID) the plan that it would be cannot work.
    """
    last = len(plan.stages) - 1
    if not 0 <= stage <= last:
        raise usage_error(f"the plan has no stage {stage}; it has {last + 1}, from 0 on")
    if stage == 0:
        raise usage_error(
            "stage 0 cannot be moved: the head runs beside it, and has the requests",
            "Stop the pipeline (it answers what is under way), plan anew with other --hosts, and start it again.",
        )
    own = plan.stages[stage]
    bind = urlsplit(own.bind)
    if bind.scheme != "tcp":
        raise usage_error(f"stage {stage} sends from {own.bind}, which no other host reaches")
    address = f"tcp://{f'[{host}]' if ':' in host else host}:{port or bind.port}"
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
        ZppError: (INVALID) the checkpoint cannot be cut so, or is not where the plan says; (USAGE) there are not as
            many ranges as stages.
    """
    if len(ranges) != len(plan.stages):
        raise usage_error(
            f"{len(ranges)} ranges are given for {len(plan.stages)} stages: their number cannot change while they run",
            "Stop the pipeline, which answers what is under way, plan anew and start it again.",
        )
    partition = resolve_partition(plan.num_layers, len(ranges), list(ranges))
    index = read_index(Path(plan.model))
    owned = assign(infer_structure(index), partition).stages
    places = [
        msgspec.structs.replace(
            place, layers=str(layers), weight_bytes=sum(index.tensors[name].nbytes for name in names)
        )
        for place, layers, names in zip(plan.stages, partition, owned, strict=True)
    ]
    return _continued(plan, places)


def _continued(plan: PipelinePlan, places: Sequence[PlannedStage]) -> PipelinePlan:
    before = Continued(digest=plan.digest, besides=plan.besides)
    return msgspec.structs.replace(plan, stages=tuple(places), continues=before)


def host_and_port(text: str) -> tuple[str, int | None]:
    """`HOST` or `HOST:PORT` in its parts; an IPv6 address before a port stands in brackets.

    Raises:
        ZppError: (ADDRESS) it is neither.
    """
    match = _HOST.fullmatch(text)
    if match is None or (match[3] and not 1 <= int(match[3]) <= 65535):
        raise address_error(f"{text!r} is not of the form HOST or HOST:PORT", "For example 10.0.0.3 or 10.0.0.3:15551.")
    return match[1] or match[2] or match[4], int(match[3]) if match[3] else None


def rewrite_plan(path: Path, plan: PipelinePlan) -> None:
    """Put a plan in the place of the one that a file holds, at once and as a whole.

    Raises:
        ZppError: (FAILURE) it cannot be written; the file is as it was.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(plan.to_yaml())
        beside.replace(path)
    except OSError as cause:
        beside.unlink(missing_ok=True)
        raise ZppError(f"{path} cannot be written: {cause.strerror}") from cause


def load_plan_file(path: Path) -> PipelinePlan:
    """Read a plan.

    Raises:
        ZppError: (INVALID) there is no such file, or it is not a plan; the message names the key.
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
    """Why a plan cannot work: every reason, none when it can.

    Args:
        plan: the plan.
        model: where the model lies on this machine, to look at it too; None where it is not here.
    """
    numbers = [place.stage for place in plan.stages]
    if numbers != list(range(len(numbers))) or not numbers:
        return [f"the stages are numbered {numbers}, not 0 to {len(numbers) - 1} in order"]
    words = _word_faults(plan)
    if words:
        return words
    _ranges, range_faults = check_ranges([place.layers for place in plan.stages], plan.num_layers)
    return [
        *(fault.message for fault in range_faults),
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
        open_ports([place.endpoints for place in plan.stages], plan.api_port)
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
    return faults


def kv_bytes_per_token(config: dict[str, object], layers: LayerRange, itemsize: int = 2) -> int | None:
    """What the KV cache of `layers` takes for one token, where config.json tells; None for attention of another kind.

    Keys and values of every head: 2 x layers x key-value heads x head size x bytes a number.
    """
    text = text_config(config)
    heads = text.get("num_attention_heads")
    kv_heads = text.get("num_key_value_heads", heads)
    hidden = text.get("hidden_size")
    size = text.get("head_dim") or (
        hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None
    )
    if "kv_lora_rank" in text or not isinstance(kv_heads, int) or not isinstance(size, int):
        return None
    return 2 * layers.count * kv_heads * size * itemsize
