# SPDX-License-Identifier: Apache-2.0
"""A part of a transformers model as `zpptool profile` measures it: loaded and run by the code that a stage runs.

The embedded engine computes one sequence at a time, so a step of several sequences is that many forward passes.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from zpptool.checkpoint.model_config import context_length, read_config
from zpptool.checkpoint.stage_tensors import load_plan
from zpptool.config.memory_budget import stage_bytes
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.device_name import device_name
from zpptool.engines.peak_memory import PeakMemory, synchronize
from zpptool.engines.read_rate import read_rate
from zpptool.engines.transformers.calls import check_arguments, device_of
from zpptool.engines.transformers.model import PartialModel, load_part
from zpptool.engines.transformers.sampling import Sampler, SamplingParams
from zpptool.errors import ZppError
from zpptool.planner.device_profile import CacheCosts, Source
from zpptool.process.measuring import Limits, Loaded, Phase, Point, Times

MOST_TOKENS = 2048
MOST_SEQUENCES = 8
"""More are so many times one."""
_CACHED_TOKENS = 16
"""The length of the sequence whose cache is examined."""


class TransformersPart:
    """A part of a transformers model.

    Args:
        spec: the stage.

    Raises:
        ZppError: (USAGE) the spec has arguments that this engine does not support.
    """

    def __init__(self, spec: StageSpec) -> None:
        check_arguments(spec)
        self._spec = spec
        self._device = torch.device(device_of(spec))
        self._loaded: PartialModel | None = None
        self._states: set[str] = set()

    def limits(self) -> Limits:
        """What is measured at most: the engine itself limits the length of a sequence only."""
        longest = context_length(read_config(self._spec.directory)) or MOST_TOKENS
        return Limits(min(MOST_TOKENS, longest), MOST_SEQUENCES, longest, device_name(self._device))

    def load(self, points: tuple[Point, ...]) -> Loaded:
        """Load the layers, with the proof and the probe that precede it."""
        spec = self._spec
        began = time.perf_counter()
        self._loaded = load_part(spec.directory, spec.stage, spec.ranges, dtype=spec.dtype, device=str(self._device))
        seconds = time.perf_counter() - began
        return Loaded(sum(tensor.nbytes for tensor in load_plan(spec.directory, spec.stage, spec.ranges)), seconds)

    def time(self, point: Point, repeats: int) -> Times:
        """Do a step so many times, with new sequences for each prompt."""
        part = self._part
        names = range(point.sequences)
        each = point.tokens // point.sequences
        inputs = part.random_input(each)
        if point.phase is Phase.DECODE:
            self._begin_sequences(point)
        forward, sampling = [], []
        sampler = Sampler(SamplingParams(temperature=1.0), [0])
        for _ in range(repeats):
            if point.phase is Phase.PREFILL:
                self._free(names)
            computed = sampled = 0.0
            for name in names:
                began = self._now()
                output = part.step(name, inputs)
                middle = self._now()
                if isinstance(output, Tensor):
                    sampler.choose(output)
                computed += middle - began
                sampled += self._now() - middle
            forward.append(computed)
            sampling.append(sampled)
        self._free(names)
        return Times(tuple(forward), tuple(sampling) if part.is_last else ())

    def _begin_sequences(self, point: Point) -> None:
        """Begin the sequences of a step. The state after a context is computed once."""
        state = f"after {point.context} tokens"
        if state not in self._states:
            self._states.add(state)
            self._part.step(state, self._part.random_input(point.context))
        for name in range(point.sequences):
            self._part.copy_sequence(state, name)

    def _free(self, names: Iterable[int]) -> None:
        for name in names:
            self._part.free(name)

    def workspace(self, tokens: int) -> int:
        """Do a step of so many tokens of one sequence."""
        part = self._part
        part.free(0)
        inputs = part.random_input(tokens)
        memory = PeakMemory(self._device)
        memory.reset()
        part.step(0, inputs)
        cached = sum(_cached_bytes(layer) for layer in part.cache_of(0).layers[part.layers.start : part.layers.end])
        part.free(0)
        return max(memory.bytes() - stage_bytes(self._spec) - cached, 0)

    def read_rate(self) -> float:
        """Read the part's weights again; bytes per second."""
        return read_rate(load_plan(self._spec.directory, self._spec.stage, self._spec.ranges), self._device)

    def cache(self, layer_types: tuple[str, ...], ranks: tuple[int, ...]) -> CacheCosts:
        """The cache of this part's layers, by what they hold of a sequence."""
        part = self._part
        part.free(0)
        part.step(0, part.random_input(_CACHED_TOKENS))
        bytes_per_token: defaultdict[str, int] = defaultdict(int)
        bytes_per_sequence: defaultdict[str, int] = defaultdict(int)
        at_most: dict[str, int] = {}
        own = range(part.layers.start, part.layers.end)
        count = Counter(layer_types[number] for number in own)
        for number in own:
            kind, layer = layer_types[number], part.cache_of(0).layers[number]
            keys = getattr(layer, "keys", None)
            per_token = _tensor_bytes(keys) + _tensor_bytes(getattr(layer, "values", None))
            bytes_per_sequence[kind] += _cached_bytes(layer) - per_token
            if isinstance(keys, Tensor) and keys.numel():
                bytes_per_token[kind] += -(-per_token // keys.shape[-2])
            window = getattr(layer, "sliding_window", None)
            if isinstance(window, int) and window > 0:
                at_most[kind] = window
        part.free(0)
        return CacheCosts(
            bytes_per_token={kind: -(-total // count[kind]) for kind, total in bytes_per_token.items()},
            bytes_per_sequence={kind: -(-total // count[kind]) for kind, total in bytes_per_sequence.items() if total},
            tokens_at_most=at_most,
            block_size=1,
            source=Source.MEASURED,
        )

    @property
    def _part(self) -> PartialModel:
        if self._loaded is None:
            raise ZppError("the part is not loaded")
        return self._loaded

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()


def _cached_bytes(layer: Any) -> int:
    """The bytes of all tensors that a layer of a cache holds."""
    return sum(_tensor_bytes(tensor) for tensor in _tensors_in(vars(layer)))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors_in(inner)


def _tensor_bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
