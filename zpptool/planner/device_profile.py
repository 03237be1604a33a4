# SPDX-License-Identifier: Apache-2.0
"""The files of measured numbers: what one kind of device takes for a model, and what the links between hosts take.

Both are YAML or JSON. Every number carries its source (`measured`, `given` by a person, or `spec`, from a data sheet)
and the time at which it was obtained. Times are seconds of one layer of its type, sizes are bytes. The profile says
what one device needs; what a whole stage needs is computed from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec

from zpptool.document import Count, read_yaml
from zpptool.errors import invalid_error
from zpptool.planner.cache_layout import CacheLayout

PROFILE_VERSION = 1
LINKS_VERSION = 1
MAX_PROFILE_BYTES = 16 << 20
ATTENTION = "attention"
"""The type of a layer where a profile or a model distinguishes none."""

Positive = Annotated[int, msgspec.Meta(gt=0, le=(1 << 63) - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e18)]


class Source(StrEnum):
    """Where a number comes from."""

    MEASURED = "measured"
    """By `zpptool profile`, on the device itself."""
    GIVEN = "given"
    """By a person who knows or assumes it."""
    SPEC = "spec"
    """From a data sheet."""


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class TimeSample(_Record, frozen=True, kw_only=True):
    """How long one forward pass takes.

    Attributes:
        tokens: tokens that are computed in it.
        sequences: how many sequences they belong to.
        context: tokens of each sequence that are in the cache already.
        seconds: how long it takes; of a layer type, for one layer.
        source: where the number comes from.
        at: when, as ISO 8601.
        stable: False where two measurements differ by more than 5 %.
    """

    tokens: Positive
    sequences: Positive = 1
    context: Count = 0
    seconds: Seconds
    source: Source
    at: str = ""
    stable: bool = True


class TimeGrid(_Record, frozen=True, kw_only=True):
    """The samples of one part of a model: of prompts, and of single tokens of many sequences."""

    prefill: tuple[TimeSample, ...] = ()
    decode: tuple[TimeSample, ...] = ()


class WorkspaceSample(_Record, frozen=True, kw_only=True):
    """The memory that a stage needs besides weights and caches, at a limit of tokens in one step."""

    max_num_batched_tokens: Positive
    bytes: Count
    source: Source = Source.MEASURED
    at: str = ""


class LoadRate(_Record, frozen=True, kw_only=True):
    """How fast a device loads weights."""

    bytes_per_second: Rate
    source: Source
    at: str = ""


class CacheCosts(_Record, frozen=True, kw_only=True):
    """What the engine's own cache specification says of one layer of each type.

    Attributes:
        bytes_per_token: of one layer, by layer type; in whole blocks.
        bytes_per_sequence: the state of one sequence in one layer, by layer type (Mamba, linear attention).
        tokens_at_most: how many tokens of a sequence a layer keeps, by layer type (sliding windows); all if absent.
        block_size: tokens in a block.
        page_bytes: bytes of one block of one layer; 0 where layers differ.
        layout: how the engine puts the cached layers into blocks, from which the number of blocks of any partition
            follows exactly; None where the engine has no blocks.
        source, at: as in `TimeSample`.
    """

    bytes_per_token: Mapping[str, Count] = {}
    bytes_per_sequence: Mapping[str, Count] = {}
    tokens_at_most: Mapping[str, Positive] = {}
    block_size: Positive = 16
    page_bytes: Count = 0
    layout: CacheLayout | None = None
    source: Source = Source.MEASURED
    at: str = ""


class ProfiledModel(_Record, frozen=True, kw_only=True):
    """The model that was measured. Another model of the same digest and dtype takes the same time."""

    name: str
    digest: str = ""
    dtype: str = "auto"


class DeviceProfile(_Record, frozen=True, kw_only=True, rename={"version": "zpptool-profile"}):
    """What one kind of device takes for one model.

    Attributes:
        version: of the file.
        device: the name of the kind of device.
        engine: `vllm` or `transformers`.
        model: what was measured.
        layer_types: the type of each layer, in order; empty where all are of one type.
        layers: times of one layer, by type.
        step: what a stage takes for a step besides its layers: preparing the inputs, and starting the computation.
        embedding, lm_head, sampler: times of the parts of the first and the last stage.
        workspace: the memory beside weights and caches.
        load: how fast weights are loaded.
        kv: the caches, by the engine's own specification.
    """

    version: Positive
    device: str
    engine: str
    model: ProfiledModel
    layer_types: tuple[str, ...] = ()
    layers: Mapping[str, TimeGrid]
    step: TimeGrid = TimeGrid()
    embedding: TimeGrid = TimeGrid()
    lm_head: TimeGrid = TimeGrid()
    sampler: TimeGrid = TimeGrid()
    workspace: tuple[WorkspaceSample, ...] = ()
    load: LoadRate | None = None
    kv: CacheCosts | None = None

    def to_yaml(self) -> str:
        """The content of the profile's file."""
        return msgspec.yaml.encode(self).decode()


class LinkRate(_Record, frozen=True, kw_only=True):
    """How fast a link carries messages of one size."""

    bytes: Positive
    bytes_per_second: Rate


class LinkSpeed(_Record, frozen=True, kw_only=True, rename={"origin": "from", "target": "to"}):
    """One directed link between two hosts. Without an entry of its own, the opposite direction is assumed equal.

    Attributes:
        origin, target: the hosts, by name.
        round_trip_seconds: of a small message there and back.
        rates: throughput by size of message, smallest first.
        source, at: as in `TimeSample`.
    """

    origin: str
    target: str
    round_trip_seconds: Seconds
    rates: Annotated[tuple[LinkRate, ...], msgspec.Meta(min_length=1)]
    source: Source
    at: str = ""


class LinksFile(_Record, frozen=True, kw_only=True, rename={"version": "zpptool-links"}):
    """What `zpptool profile --links` writes."""

    version: Positive
    links: tuple[LinkSpeed, ...]

    def to_yaml(self) -> str:
        """The content of the file of links."""
        return msgspec.yaml.encode(self).decode()


def read_profile(path: Path) -> DeviceProfile:
    """Read the profile of a kind of device.

    Raises:
        ZppError: (INVALID) there is no such file, or it is not a profile; the message names the key at fault.
    """
    profile: DeviceProfile = _read(path, DeviceProfile, "profile", "Write a profile with zpptool profile.")
    if profile.version != PROFILE_VERSION:
        raise invalid_error(f"{path} has version {profile.version}, this zpptool reads profiles of {PROFILE_VERSION}")
    for kind in profile.layer_types:
        if kind not in profile.layers:
            raise invalid_error(f"{path} names layers of type {kind[:80]!r} without their times", "Profile it again.")
    return profile


def read_links(path: Path) -> tuple[LinkSpeed, ...]:
    """Read a file of links.

    Raises:
        ZppError: (INVALID) there is no such file, or it is not a file of links; the message names the key at fault.
    """
    links: LinksFile = _read(path, LinksFile, "file of links", "Write it with zpptool profile --links.")
    if links.version != LINKS_VERSION:
        raise invalid_error(f"{path} has version {links.version}, this zpptool reads files of links of {LINKS_VERSION}")
    return links.links


def _read(path: Path, kind: type, what: str, hint: str) -> Any:
    try:
        content = _times_as_text(read_yaml(path, MAX_PROFILE_BYTES, what, hint))
        return msgspec.convert(content, kind, strict=False)  # YAML reads 1e9 as text
    except msgspec.MsgspecError as cause:
        raise invalid_error(f"{path} is not a {what}: {cause}", hint) from cause


def _times_as_text(value: Any) -> Any:
    """The same document with points in time as ISO 8601, which YAML reads as dates."""
    if isinstance(value, dict):
        return {key: _times_as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_times_as_text(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value
