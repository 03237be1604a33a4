# SPDX-License-Identifier: Apache-2.0
"""Prepares vLLM's stages for other layer ranges: what they answered during set-up, and the arguments of that set-up for
another partition.

The invariant: the cache configuration of a partition is ready before any stage leaves, and the roll call, not the plan,
decides which partition is there. So an epoch that ends in between does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.base import prepare_partition
from zpptool.engines.vllm import codec
from zpptool.engines.vllm.compat.engine_config import VllmConfig
from zpptool.engines.vllm.core.kv_layout import lay_out, refuse_too_large
from zpptool.errors import stage_error
from zpptool.partition import LayerRange, Partition
from zpptool.ring.messages import StageFacts

LAY_OUT = "initialize_from_config"
"""The call that gives each stage its cache configuration."""
RECORDED = frozenset({"get_kv_cache_spec", "determine_available_memory"})
"""The calls whose answers another partition's cache is computed from."""
Layers = tuple[tuple[int, int], ...]
"""For each stage, its first layer and the one after its last."""


class LayerMove:
    """The set-up of one head's stages, by partition.

    Args:
        spec: stage 0's.
        config: the head's.
        facts: returns the facts of the stages that are there.
    """

    def __init__(self, spec: StageSpec, config: VllmConfig, facts: Callable[[], tuple[StageFacts, ...]]) -> None:
        self._spec, self._config, self._facts = spec, config, facts
        self._answers: dict[str, Sequence[Any]] = {}
        self._first: tuple[Layers, Sequence[Any]] | None = None
        self._payloads: dict[Layers, bytes] = {}

    def record(self, method: str, args: tuple[Any, ...], answers: Sequence[Any]) -> None:
        """Take note of a call that every stage has answered; calls of other methods are ignored."""
        if method in RECORDED:
            self._answers[method] = answers
        if method == LAY_OUT and self._first is None:
            layers = _layers(self._facts())
            self._first = layers, args[0]
            self._payloads[layers] = codec.encode([args, {}])

    def prepare(self, partition: Partition) -> tuple[int, ...]:
        """Prepare the set-up of the stages of a partition.

        Returns:
            the stages that have to restart: all, because the cache configuration lists every stage's layers.

        Raises:
            ZppError: the layers cannot be distributed so; the message says why.
        """
        if self._first is None or RECORDED - self._answers.keys():
            raise stage_error("the stages are not set up yet", "Ask again when zpptool status says that it is ready.")
        layers, before = self._first
        laid = lay_out(self._config, self._answers["get_kv_cache_spec"], before, partition)
        first = tuple(LayerRange(*own) for own in layers)
        refuse_too_large(laid, self._answers["determine_available_memory"], self._growth(first, partition), partition)
        prepare_partition(self._spec, self._facts, partition)
        self._payloads[tuple((own.start, own.end) for own in partition)] = codec.encode([(laid,), {}])
        return tuple(range(len(partition)))

    def amended(self, stages: tuple[StageFacts, ...]) -> Mapping[str, bytes]:
        """By method, the payloads of set-up calls that are different for the partition of these stages."""
        payload = self._payloads.get(_layers(stages))
        return {} if payload is None else {LAY_OUT: payload}

    def _growth(self, before: Partition, partition: Partition) -> list[int]:
        """For each stage, how many bytes its weights grow by; 0 where the user has set the size of the cache."""
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
