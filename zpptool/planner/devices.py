# SPDX-License-Identifier: Apache-2.0
"""devices.yaml: the devices that there are, how they are linked, and what the pipeline is for.

Sizes are bytes, or text with a unit (`80 GiB`, `24GB`); times are seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from zpptool.document import read_yaml
from zpptool.errors import ZppError, invalid_error
from zpptool.partition import LayerRange, parse_range
from zpptool.planner.device_profile import (
    CacheCosts,
    DeviceProfile,
    LinkRate,
    LinkSpeed,
    Positive,
    Rate,
    Seconds,
    Source,
    read_links,
    read_profile,
)

DEVICES_VERSION = 1
MAX_DEVICES_BYTES = 4 << 20
_HINT = "docs/planning.md describes the file."
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B|B)?\s*")
_UNITS: dict[str, int] = {"B": 1} | {
    f"{prefix}{middle}B": int(base**power)
    for power, prefix in enumerate("KMGT", start=1)
    for middle, base in (("i", 1024), ("", 1000))
}
Size = int | str


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Speed(_Record, frozen=True, kw_only=True):
    """How fast a device is, where nothing was measured: a layer takes as long as reading its memory or computing it.

    Attributes:
        memory_bytes_per_second: how fast weights and caches are read.
        flops: floating-point operations in a second, in the model's dtype; unlimited if not given.
        layer_seconds: what each layer takes in any case.
        source: where the numbers come from.
    """

    memory_bytes_per_second: Rate
    flops: Rate | None = None
    layer_seconds: Seconds = 0.0
    source: Source = Source.GIVEN


class DeviceKind(_Record, frozen=True, kw_only=True):
    """One kind of device.

    Attributes:
        memory: of one device.
        reserve: what the planner leaves alone.
        profile: the file of `zpptool profile`, relative to devices.yaml.
        profiles: further ones, by how many devices share a stage (tensor parallelism).
        speed: what is known instead of a profile.
        workspace: memory beside weights and caches, where no profile says it.
        kv: the caches, where no profile says it.
    """

    memory: Size
    reserve: Size = 0
    profile: str | None = None
    profiles: Mapping[str, str] = {}
    speed: Speed | None = None
    workspace: Size = 0
    kv: CacheCosts | None = None


class Host(_Record, frozen=True, kw_only=True):
    """One machine with devices of one kind.

    Attributes:
        name: its name or address; stages are planned for it.
        kind: of its devices.
        devices: how many it has.
        free: the memory that is free on each; the kind's memory if not given.
        reserve: what is left alone on each; the kind's if not given.
        tensor_parallel: how many of its devices may share a stage.
    """

    name: str
    kind: str
    devices: Positive = 1
    free: Size | None = None
    reserve: Size | None = None
    tensor_parallel: tuple[Positive, ...] = (1,)


class Links(_Record, frozen=True, kw_only=True):
    """How hosts are linked.

    Attributes:
        default: between any two hosts without an entry of their own; without it they are not linked.
        local: between two devices of one host.
        pairs: single links.
        file: a file of `zpptool profile --links`, relative to devices.yaml.
    """

    default: LinkNumbers | None = None
    local: LinkNumbers | None = None
    pairs: tuple[LinkSpeed, ...] = ()
    file: str | None = None


class LinkNumbers(_Record, frozen=True, kw_only=True):
    """What is assumed of links: round trip in seconds, and throughput."""

    round_trip_seconds: Seconds = 0.0
    bytes_per_second: Rate
    source: Source = Source.GIVEN

    def between(self, origin: str, target: str) -> LinkSpeed:
        """The same numbers as the speed of one link."""
        rates = (LinkRate(bytes=1, bytes_per_second=self.bytes_per_second),)
        return LinkSpeed(
            origin=origin, target=target, round_trip_seconds=self.round_trip_seconds, rates=rates, source=self.source
        )


class Workload(_Record, frozen=True, kw_only=True):
    """What the pipeline is for.

    Attributes:
        prompt_tokens, answer_tokens: of a typical request.
        concurrency: how many requests are in progress at once; fewer are planned where their caches do not fit, or
            where fewer give more tokens per second.
        rate: requests per second that are needed, if any.
        max_model_len: the longest sequence; prompt and answer of the typical request if not given.
        max_num_batched_tokens: the most tokens in one step.
        ttft_seconds, tpot_seconds: limits on the time to the first token and between tokens, if any.
    """

    prompt_tokens: Positive = 512
    answer_tokens: Positive = 256
    concurrency: Positive = 16
    rate: Rate | None = None
    max_model_len: Positive | None = None
    max_num_batched_tokens: Positive = 2048
    ttft_seconds: Rate | None = None
    tpot_seconds: Rate | None = None

    @property
    def tokens(self) -> int:
        """Tokens of a typical request in the cache at its end."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.max_model_len or self.tokens


class Pin(_Record, frozen=True, kw_only=True):
    """Something that has to be on a host: layers, or the first or the last stage."""

    host: str
    layers: str | None = None
    stage: str | None = None

    def range(self, num_layers: int) -> LayerRange:
        """The layers that have to be on the host; raises ZppError (INVALID) where that is none of the model's."""
        if (self.layers is None) == (self.stage is None) or self.stage not in (None, "first", "last"):
            raise invalid_error(f"the pin on host {self.host} names neither layers nor stage: first or last", _HINT)
        if self.stage is not None:
            return LayerRange(0, 1) if self.stage == "first" else LayerRange(num_layers - 1, num_layers)
        layers = parse_range(self.layers or "")
        if not 0 <= layers.start < layers.end <= num_layers:
            raise invalid_error(f"the pin on host {self.host} names layers {layers}, the model has {num_layers}")
        return layers


class DevicesFile(_Record, frozen=True, kw_only=True, rename={"version": "zpptool-devices"}):
    """devices.yaml.

    Attributes:
        version: of the file.
        kinds: of devices, by name.
        hosts: the machines.
        links: between them.
        workload: what is to be served.
        pins: what has to be where.
        exclude: hosts that are not to be used.
        most_pipelines: how many whole pipelines may be planned side by side.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=DEVICES_VERSION)]
    kinds: Mapping[str, DeviceKind]
    hosts: Annotated[tuple[Host, ...], msgspec.Meta(min_length=1)]
    links: Links = Links()
    workload: Workload = Workload()
    pins: tuple[Pin, ...] = ()
    exclude: tuple[str, ...] = ()
    most_pipelines: Positive = 1

    @property
    def usable_hosts(self) -> tuple[Host, ...]:
        """The hosts that are not excluded."""
        return tuple(host for host in self.hosts if host.name not in self.exclude)

    def usable_memory(self, host: Host) -> int:
        """Bytes of one device of a host that a stage may take: what is free, less the reserve."""
        kind = self.kinds[host.kind]
        free = byte_count(kind.memory if host.free is None else host.free)
        return max(0, free - byte_count(kind.reserve if host.reserve is None else host.reserve))


class Inventory(_Record, frozen=True, kw_only=True):
    """devices.yaml with the files that it names.

    Attributes:
        devices: the file itself.
        profiles: by kind, then by how many devices share a stage.
        links: every single link.
    """

    devices: DevicesFile
    profiles: Mapping[str, Mapping[int, DeviceProfile]]
    links: tuple[LinkSpeed, ...]


def byte_count(size: Size) -> int:
    """The bytes of a size such as `80 GiB`.

    Raises:
        ZppError: (INVALID) it is not a size.
    """
    if isinstance(size, int) and size >= 0:
        return size
    match = _SIZE.fullmatch(str(size))
    if match is None:
        raise invalid_error(f"{str(size)[:80]!r} is not a size in bytes", "Write 80 GiB, 24GB, or a number of bytes.")
    return int(float(match[1]) * _UNITS[match[2] or "B"])


def read_devices(path: Path) -> Inventory:
    """Read devices.yaml and what it names.

    Raises:
        ZppError: (INVALID) a file is missing or is not what it should be; the message names the key at fault.
    """
    try:
        content = read_yaml(path, MAX_DEVICES_BYTES, "file of devices", _HINT)
        devices = msgspec.convert(content, DevicesFile, strict=False)  # YAML reads 1e9 as text
    except msgspec.MsgspecError as cause:
        raise invalid_error(f"{path} is not a file of devices: {cause}", _HINT) from cause
    faults = _faults(devices)
    if faults:
        raise invalid_error(f"{path}: {'; '.join(faults)}", _HINT)
    profiles = {name: _profiles(kind, path.parent) for name, kind in devices.kinds.items()}
    more = read_links(path.parent / devices.links.file) if devices.links.file else ()
    return Inventory(devices=devices, profiles=profiles, links=(*more, *devices.links.pairs))


def refuse_other_models(inventory: Inventory, digest: str, dtype: str) -> None:
    """Refuse profiles of another model, or of this one in another dtype.

    Args:
        inventory: with the profiles.
        digest, dtype: of the model that is planned; `auto` is the checkpoint's own dtype.

    Raises:
        ZppError: (INVALID) a profile is of another model; the message names both.
    """
    for name, profiles in inventory.profiles.items():
        for profile in profiles.values():
            measured = profile.model
            if measured.digest and measured.digest != digest:
                raise invalid_error(
                    f"the profile of kind {name} is of {measured.name} (digest {measured.digest}), and the model to "
                    f"plan has digest {digest}",
                    "Profile this model.",
                )
            if "auto" not in (dtype, measured.dtype) and dtype != measured.dtype:
                raise invalid_error(
                    f"the profile of kind {name} was measured in {measured.dtype}, and {dtype} is planned",
                    f"Profile it with --dtype {dtype}.",
                )


def _profiles(kind: DeviceKind, folder: Path) -> dict[int, DeviceProfile]:
    files: dict[str, Any] = {**({"1": kind.profile} if kind.profile else {}), **kind.profiles}
    return {int(width): read_profile(folder / name) for width, name in files.items()}


def _faults(devices: DevicesFile) -> list[str]:
    names = [host.name for host in devices.hosts]
    faults = [f"host {name} is listed twice" for name in sorted({name for name in names if names.count(name) > 1})]
    faults += [
        f"host {host.name} is of kind {host.kind}, which is not among the kinds"
        for host in devices.hosts
        if host.kind not in devices.kinds
    ]
    named = [*devices.exclude, *(pin.host for pin in devices.pins)]
    faults += [f"{name} is pinned or excluded, and not among the hosts" for name in named if name not in names]
    if not devices.usable_hosts:
        faults.append("every host is excluded")
    for name, kind in devices.kinds.items():
        faults += [
            f"kind {name} has a profile for {width!r} devices, which is not a number of them"
            for width in kind.profiles
            if not re.fullmatch(r"[1-9][0-9]{0,3}", width)
        ]
    try:
        for kind in devices.kinds.values():
            for size in (kind.memory, kind.reserve, kind.workspace):
                byte_count(size)
        for host in devices.hosts:
            if host.kind in devices.kinds:
                devices.usable_memory(host)
    except ZppError as fault:
        faults.append(fault.message)
    return faults
