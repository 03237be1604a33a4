# SPDX-License-Identifier: Apache-2.0
"""What vLLM's head keeps for the day when layers move between its stages: what they told when they were set up, and
what to tell those of another partition.

The invariant: what the stages of a partition are told of their cache is ready before any of them leaves, and it is the
roll call, not the plan, that says which partition is there: so an epoch that ends in between harms nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm.config import VllmConfig

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.base import prepare_partition
from zpptool.engines.vllm import codec
from zpptool.engines.vllm.core.kv_layout import lay_out, refuse_too_large
from zpptool.errors import stage_error
from zpptool.partition import LayerRange, Partition
from zpptool.ring.messages import StageFacts

LAY_OUT = "initialize_from_config"
TOLD = frozenset({"get_kv_cache_spec", "determine_available_memory"})
Layers = tuple[tuple[int, int], ...]


class LayerMove:
    """The set-up of one head's stages, by partition.

    Args:
        spec: stage 0's.
        config: the head's.
        facts: tells who the stages are.
    """

    def __init__(self, spec: StageSpec, config: VllmConfig, facts: Callable[[], tuple[StageFacts, ...]]) -> None:
        self._spec, self._config, self._facts = spec, config, facts
        self._told: dict[str, Sequence[Any]] = {}
        self._first: tuple[Layers, Sequence[Any]] | None = None
        self._payloads: dict[Layers, bytes] = {}

    def note(self, method: str, args: tuple[Any, ...], answers: Sequence[Any]) -> None:
        """Keep what a call of the set-up has told, or was told."""
        if method in TOLD:
            self._told[method] = answers
        if method == LAY_OUT and self._first is None:
            layers = _layers(self._facts())
            self._first = layers, args[0]
            self._payloads[layers] = codec.encode([args, {}])

    def prepare(self, partition: Partition) -> tuple[int, ...]:
        """Make ready what stages of that partition are to be told; all of them come again, for it names every stage's.

        Raises:
            ZppError: it cannot be, and why.
        """
        if self._first is None or TOLD - self._told.keys():
            raise stage_error("the stages are not set up yet", "Ask again when zpptool status says that it is ready.")
        layers, before = self._first
        laid = lay_out(self._config, self._told["get_kv_cache_spec"], before, partition)
        then = tuple(LayerRange(*own) for own in layers)
        refuse_too_large(laid, self._told["determine_available_memory"], self._growth(then, partition), partition)
        prepare_partition(self._spec, self._facts, partition)
        self._payloads[tuple((own.start, own.end) for own in partition)] = codec.encode([(laid,), {}])
        return tuple(range(len(partition)))

    def amended(self, stages: tuple[StageFacts, ...]) -> Mapping[str, bytes]:
        """What to tell the stages that are there."""
        payload = self._payloads.get(_layers(stages))
        return {} if payload is None else {LAY_OUT: payload}

    def _growth(self, before: Partition, partition: Partition) -> list[int]:
        """Bytes of weights that each stage has more; none count where the user has said what the cache may take."""
        if self._config.cache_config.kv_cache_memory_bytes is not None:
            return [0] * len(partition)
        index = read_index(self._spec.directory)
        structure = infer_structure(index)
        sizes = [
            [sum(index.tensors[name].nbytes for name in names) for names in assign(structure, ranges).stages]
            for ranges in (before, partition)
        ]
        return [now - then for then, now in zip(*sizes, strict=True)]


def _layers(stages: Sequence[StageFacts]) -> Layers:
    return tuple(own.layers for own in stages)
