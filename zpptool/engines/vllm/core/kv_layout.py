# SPDX-License-Identifier: Apache-2.0
"""The cache of a pipeline whose layers move between stages while its head goes on.

The head has decided once how many blocks the cache has and how its layers are grouped; its scheduler counts on that.
The invariant: a new partition has the same blocks and the same groups, or is refused before anything is touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec, UniformTypeKVCacheSpecs

from zpptool.console import human_bytes
from zpptool.engines.vllm.compat import access as hooks
from zpptool.errors import ZppError, invalid_error
from zpptool.partition import LayerRange, Partition

_OF_THE_LAYERS = ("num_blocks", "kv_cache_tensors", "kv_cache_groups")


def lay_out(
    config: VllmConfig,
    specs: Sequence[Mapping[str, KVCacheSpec]],
    before: Sequence[KVCacheConfig],
    partition: Partition,
) -> list[KVCacheConfig]:
    """Each stage's cache when it owns other layers, with as many blocks as before.

    Args:
        config: the head's.
        specs: what each layer wants, by its name, as each stage has told it.
        before: each stage's cache as it is.
        partition: the ranges that are to be.

    Raises:
        ZppError: (INVALID) a layer of the cache has no number; (FAILURE) the scheduler would have to see other groups.
    """
    every = {name: spec for own in specs for name, spec in own.items()}
    numbers = {name: layer_number(name) for name in every}
    wanted = [{name: every[name] for name in every if numbers[name] in _numbers(own)} for own in partition]
    made = hooks.kv_cache_configs(config, wanted, before[0].num_blocks)
    kept = [field.name for field in dataclasses.fields(KVCacheConfig) if field.name not in _OF_THE_LAYERS]
    laid = [dataclasses.replace(one, **{name: getattr(before[0], name) for name in kept}) for one in made]
    if groups_of(laid[0]) != groups_of(before[0]) or laid[0].num_blocks != before[0].num_blocks:
        raise ZppError(
            "with these ranges the scheduler would have to see other groups of the cache, and it is set up once",
            "Choose ranges in which stage 0 keeps its kinds of layers, or stop the pipeline and start it anew.",
        )
    return laid


def refuse_too_large(
    laid: Sequence[KVCacheConfig], available: Sequence[int], growth: Sequence[int], partition: Partition
) -> None:
    """Refuse caches that stages have no memory for.

    Args:
        laid: each stage's cache.
        available: bytes that each had for its cache, with the layers that it had then.
        growth: bytes of weights that each has more now.
        partition: the ranges that are to be.

    Raises:
        ZppError: (FAILURE) a stage is short of memory; every one is named.
    """
    short = []
    for stage, (cache, memory, more) in enumerate(zip(laid, available, growth, strict=True)):
        needed, left = cache_bytes(cache), max(memory - more, 0)
        if needed > left:
            short.append(
                f"stage {stage} with layers {partition[stage]} needs {human_bytes(needed)} for its part of the cache"
                f" and has {human_bytes(left)}"
            )
    if short:
        raise ZppError(
            "; ".join(short), "Give that stage fewer layers, or stop the pipeline and start it anew with fewer blocks."
        )


def cache_bytes(cache: KVCacheConfig) -> int:
    """What a stage's cache takes; all its tensors lie in one piece of memory, of which each tells the size."""
    return max((tensor.size for tensor in cache.kv_cache_tensors), default=0)


def groups_of(cache: KVCacheConfig) -> list[Any]:
    """The groups as the scheduler sees them: of one whose layers differ in size alone, any layer stands for all."""
    kinds = (group.kv_cache_spec for group in cache.kv_cache_groups)
    return [
        next(iter(kind.kv_cache_specs.values())) if isinstance(kind, UniformTypeKVCacheSpecs) else kind
        for kind in kinds
    ]


def layer_number(name: str) -> int:
    """Which decoder layer a layer of the cache is in: the one number in its name.

    Raises:
        ZppError: (INVALID) there is none, or more than one.
    """
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    if len(numbers) != 1:
        raise invalid_error(
            f"{name} has a cache, and which stage it is to go to does not follow from its name",
            "Stop the pipeline and start it anew with these ranges.",
        )
    return numbers[0]


def _numbers(own: LayerRange) -> range:
    return range(own.start, own.end)


def common_layouts(told: Sequence[list[str]]) -> list[list[str]]:
    """The same list for every stage: what all can have, in the order that the choosiest of them prefers.

    Where they have nothing in common, their own lists, which vLLM then refuses.

    Args:
        told: by each stage, the most preferred first.
    """
    choosiest = min(told, key=len, default=[])
    common = [name for name in choosiest if all(name in names for names in told)]
    return [common] * len(told) if common else list(told)
