# SPDX-License-Identifier: Apache-2.0
"""What a stage takes on one kind of device: bytes of weights, caches and workspace, and seconds of one step.

A step of the pipeline computes one token of each sequence of its batch, and as much of the prompts as arrive meanwhile:
whenever an answer ends, a prompt begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from zpptool.errors import invalid_error
from zpptool.planner.caches import StageCaches, bytes_of
from zpptool.planner.device_profile import ATTENTION, CacheCosts, DeviceProfile, Source, TimeGrid, TimeSample
from zpptool.planner.devices import DeviceKind, Speed, Workload, byte_count
from zpptool.planner.estimate import NOTHING, Seconds, along, time_of, with_range
from zpptool.planner.weights import StageWeights

ASSUMED = Speed(memory_bytes_per_second=1e11)
"""Where nothing is known of any device: all are alike, and a layer takes as long as reading its bytes."""


@dataclass(frozen=True)
class Model:
    """What the planner has to know of a model.

    Attributes:
        weights: of every stage.
        activation_bytes: what a link carries for one token.
        itemsize: bytes of a number in the model's dtype.
        kv: the caches as they follow from config.json, for devices without a profile; None where they do not.
    """

    weights: StageWeights
    activation_bytes: int
    itemsize: int
    kv: CacheCosts | None = None


@dataclass(frozen=True)
class OperatingPoint:
    """How much is in progress.

    Attributes:
        sequences: requests that are in progress at once.
        in_flight: steps that may be in progress at once: as many as stages.
    """

    sequences: int
    in_flight: int

    @property
    def steps(self) -> int:
        """Steps that are in progress at once; each has at least one request."""
        return min(self.in_flight, self.sequences)

    @property
    def batch(self) -> float:
        """Requests in one step, on average."""
        return self.sequences / self.steps


class StageCosts:
    """The costs of stages on `width` devices of one kind, at one operating point.

    Args:
        model: the model.
        kind: of the devices.
        profile: what was measured on this kind, for this width; None if nothing was.
        width: how many devices share a stage.
        divided: whether the profile is of one device, and `width` of them are taken to be as many times as fast.
        workload, point: what is served.

    Raises:
        ZppError: (INVALID) the profile is of another model, or nothing says how large caches are; (FAILURE) the
            profile does not know the caches of this width.
    """

    def __init__(
        self,
        model: Model,
        kind: DeviceKind,
        profile: DeviceProfile | None,
        width: int,
        divided: bool,
        workload: Workload,
        point: OperatingPoint,
    ) -> None:
        self.model = model
        self.kind = kind
        self._width = width
        self._workload = workload
        self._point = point
        self.source = _source_of(kind, profile, divided)
        self._divided = divided
        self._types = _layer_types(model.weights.num_layers, profile)
        kv = (profile.kv if profile else None) or kind.kv or model.kv
        if kv is None:
            raise invalid_error(
                "the size of the caches does not follow from config.json",
                "Measure it with zpptool profile, or give kv of the kind in devices.yaml.",
            )
        self.workspace = _workspace(kind, profile, workload.max_num_batched_tokens)
        self._caches = StageCaches(kv, self._types, width, workload, point.sequences)
        layers, self._first, self._last = self._times(kind.speed or ASSUMED, profile, kv)
        self._step = self._by_grid(profile.step) if profile else NOTHING
        self._sums = list(accumulate(layers, initial=NOTHING))
        self._prompt_sums = list(accumulate(self._chunk_times(kind.speed or ASSUMED, profile), initial=0.0))

    def weights(self, start: int, end: int) -> int:
        """Bytes of the weights of the layers `[start, end)` on each device."""
        return -(-self.model.weights.bytes[start][end] // self._width)

    def cache(self, start: int, end: int) -> int:
        """Bytes on each device of the caches of all requests in progress."""
        return self._caches.of_all(start, end)

    def memory(self, start: int, end: int) -> int:
        """Bytes that each device needs in all."""
        return self.weights(start, end) + self.cache(start, end) + self.workspace

    def seconds(self, start: int, end: int) -> Seconds:
        """The time of one step."""
        before, after = self._sums[start], self._sums[end]
        time = self._step + Seconds(*(late - early for early, late in zip(before, after, strict=True)))
        time = time + self._first if start == 0 else time
        return time + self._last if end == self.model.weights.num_layers else time

    def prompt_seconds(self, start: int, end: int) -> float:
        """The time of one chunk of a prompt in the layers `[start, end)`."""
        return self._prompt_sums[end] - self._prompt_sums[start]

    def sequence_bytes(self, start: int, end: int) -> int:
        """Bytes of the caches of one typical request in the layers `[start, end)`, on each device."""
        return self._caches.of_one(start, end)

    def _times(
        self, speed: Speed, profile: DeviceProfile | None, kv: CacheCosts
    ) -> tuple[list[Seconds], Seconds, Seconds]:
        """The times of each layer, and of what the first and the last stage do beside theirs."""
        weights = self.model.weights
        if profile is None:
            layers = [
                self._by_speed(speed, size, bytes_of(kv, kind, self._context))
                for size, kind in zip(weights.layer_bytes, self._types, strict=True)
            ]
            return layers, NOTHING, self._by_speed(speed, weights.head, 0)
        known = {kind: self._shared(self._by_grid(profile.layers.get(kind, TimeGrid()))) for kind in set(self._types)}
        ends = self._shared(self._by_grid(profile.lm_head)) + self._by_grid(profile.sampler)
        return [known[kind] for kind in self._types], self._by_grid(profile.embedding), ends

    def _shared(self, time: Seconds) -> Seconds:
        """The time of what the devices of a stage share; as little as it can be where it was measured on one."""
        if not self._divided:
            return time
        return with_range(time.nominal / self._width, Source.SPEC)

    def _chunk_times(self, speed: Speed, profile: DeviceProfile | None) -> list[float]:
        if profile is not None:
            grids = {kind: _of_one_sequence(profile.layers.get(kind, TimeGrid())) for kind in set(self._types)}
            known = {kind: self._shared(time_of(grid, self.chunk, 0)).nominal for kind, grid in grids.items()}
            return [known[kind] for kind in self._types]
        sizes = self.model.weights.layer_bytes
        return [self._time_by_speed(speed, size, 0, self.chunk) for size in sizes]

    @property
    def chunk(self) -> int:
        """Tokens of a prompt that are computed at once."""
        return min(self._workload.prompt_tokens, self._workload.max_num_batched_tokens)

    @property
    def _context(self) -> int:
        """Tokens of a sequence in the cache, in the middle of its answer."""
        return self._workload.prompt_tokens + self._workload.answer_tokens // 2

    @property
    def prompt_share(self) -> float:
        """Tokens of prompts in one step, on average."""
        return self._point.batch * self._workload.prompt_tokens / self._workload.answer_tokens

    def _by_grid(self, grid: TimeGrid) -> Seconds:
        decode = time_of(grid.decode, self._point.batch, self._context)
        prefill = time_of(_of_one_sequence(grid), self.chunk, (self._workload.prompt_tokens - self.chunk) / 2)
        return decode + prefill.times(self.prompt_share / self.chunk)

    def _by_speed(self, speed: Speed, size: int, cached: int) -> Seconds:
        tokens = self._point.batch + self.prompt_share
        return with_range(self._time_by_speed(speed, size, self._point.batch * cached, tokens), speed.source)

    def _time_by_speed(self, speed: Speed, size: int, cached: float, tokens: float) -> float:
        """The time of a layer of `size` bytes: that of reading it and the caches, or of the arithmetic."""
        reading = (size + cached) / speed.memory_bytes_per_second
        computing = 2 * tokens * size / self.model.itemsize / speed.flops if speed.flops else 0.0
        return max(reading, computing) / self._width + speed.layer_seconds


def link_seconds(points: Sequence[tuple[float, float]], size: float) -> float:
    """How long a link is busy with a message: from the (bytes, bytes per second) of messages that were measured."""
    return along([(each, each / rate) for each, rate in points], size)


def _source_of(kind: DeviceKind, profile: DeviceProfile | None, divided: bool) -> Source | None:
    """Where the times of a kind come from; None where nothing is known."""
    if profile is not None:
        return Source.SPEC if divided else Source.MEASURED
    return kind.speed.source if kind.speed else None


def _of_one_sequence(grid: TimeGrid) -> Sequence[TimeSample]:
    """The samples of single prompts, where there are any."""
    return [sample for sample in grid.prefill if sample.sequences == 1] or grid.prefill


def _layer_types(count: int, profile: DeviceProfile | None) -> tuple[str, ...]:
    if profile is None:
        return (ATTENTION,) * count
    if profile.layer_types:
        if len(profile.layer_types) != count:
            raise invalid_error(
                f"the profile of {profile.device} is of {len(profile.layer_types)} layers, the model has {count}",
                "Profile this model.",
            )
        return profile.layer_types
    if len(profile.layers) != 1:
        raise invalid_error(
            f"the profile of {profile.device} has layers of {len(profile.layers)} types, and not which is which",
            "Add layer_types, one a layer.",
        )
    return (next(iter(profile.layers)),) * count


def _workspace(kind: DeviceKind, profile: DeviceProfile | None, tokens: int) -> int:
    if profile is None or not profile.workspace:
        return byte_count(kind.workspace)
    points = [(float(sample.max_num_batched_tokens), float(sample.bytes)) for sample in profile.workspace]
    return -int(-along(points, tokens) // 1)
