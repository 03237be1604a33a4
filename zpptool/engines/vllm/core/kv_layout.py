# SPDX-License-Identifier: Apache-2.0
"""The KV cache of a pipeline whose layers move between stages while its head continues.

The head has decided once how many blocks the cache has and how its layers are grouped, and its scheduler relies on
that. The invariant: a new partition has the same blocks and the same groups, or is refused before anything is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from zpptool.console import human_bytes
from zpptool.engines.vllm.compat import kv_cache
from zpptool.engines.vllm.compat.engine_config import VllmConfig
from zpptool.engines.vllm.compat.kv_cache import KVCacheConfig, KVCacheSpec, UniformTypeKVCacheSpecs
from zpptool.errors import ZppError, invalid_error
from zpptool.partition import LayerRange, Partition

_OF_THE_LAYERS = ("num_blocks", "kv_cache_tensors", "kv_cache_groups")
"""The fields of a cache configuration that depend on the stage's layers."""


def lay_out(
    config: VllmConfig,
    specs: Sequence[Mapping[str, KVCacheSpec]],
    before: Sequence[KVCacheConfig],
    partition: Partition,
) -> list[KVCacheConfig]:
    """Each stage's cache when it owns other layers, with as many blocks as before.

    Args:
        config: the head's.
        specs: for each stage, what each of its layers needs, by the layer's name.
        before: each stage's cache now.
        partition: the new layer ranges.

    Raises:
        ZppError: (INVALID) a layer of the cache has no number; (FAILURE) the scheduler would have to use other groups.
    """
    every = {name: spec for own in specs for name, spec in own.items()}
    numbers = {name: layer_number(name) for name in every}
    wanted = [{name: every[name] for name in every if numbers[name] in _numbers(own)} for own in partition]
    made = kv_cache.kv_cache_configs(config, wanted, before[0].num_blocks)
    unchanged = [field.name for field in dataclasses.fields(KVCacheConfig) if field.name not in _OF_THE_LAYERS]
    laid = [dataclasses.replace(one, **{name: getattr(before[0], name) for name in unchanged}) for one in made]
    if groups_of(laid[0]) != groups_of(before[0]) or laid[0].num_blocks != before[0].num_blocks:
        raise ZppError(
            "with these ranges the scheduler would have to see other groups of the cache, and it is set up once",
            "Choose ranges in which stage 0 keeps its kinds of layers, or stop the pipeline and start it again.",
        )
    return laid


def refuse_too_large(
    laid: Sequence[KVCacheConfig], available: Sequence[int], growth: Sequence[int], partition: Partition
) -> None:
    """Refuse caches that do not fit into the memory of their stages.

    Args:
        laid: each stage's cache.
        available: bytes that each stage had for its cache, with its layers of that time.
        growth: bytes by which the weights of each stage have grown since.
        partition: the new layer ranges.

    Raises:
        ZppError: (FAILURE) a stage is short of memory; the message names every such stage.
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
            "; ".join(short), "Give that stage fewer layers, or stop the pipeline and start it again with fewer blocks."
        )


def cache_bytes(cache: KVCacheConfig) -> int:
    """The bytes of a stage's cache. All its tensors share one allocation, and each has the size of all of it."""
    return max((tensor.size for tensor in cache.kv_cache_tensors), default=0)


def groups_of(cache: KVCacheConfig) -> list[KVCacheSpec]:
    """The groups as the scheduler sees them: a group whose layers differ in size alone is represented by its first."""
    kinds = (group.kv_cache_spec for group in cache.kv_cache_groups)
    return [
        next(iter(kind.kv_cache_specs.values())) if isinstance(kind, UniformTypeKVCacheSpecs) else kind
        for kind in kinds
    ]


def layer_number(name: str) -> int:
    """The decoder layer that a layer of the cache is in: the one number in its name.

    Raises:
        ZppError: (INVALID) there is none, or more than one.
    """
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    if len(numbers) != 1:
        raise invalid_error(
            f"{name} has a cache, and which stage it is to go to does not follow from its name",
            "Stop the pipeline and start it again with these ranges.",
        )
    return numbers[0]


def _numbers(own: LayerRange) -> range:
    return range(own.start, own.end)


def common_layouts(by_stage: Sequence[list[str]]) -> list[list[str]]:
    """The layouts that all stages support, in the order preferred by the stage that supports the fewest.

    Args:
        by_stage: the layouts that each stage supports, the preferred one first.

    Returns:
        the same list for every stage; where no layout is common, `by_stage`, which vLLM then refuses.
    """
    fewest = min(by_stage, key=len, default=[])
    common = [name for name in fewest if all(name in names for names in by_stage)]
    return [common] * len(by_stage) if common else list(by_stage)
