# SPDX-License-Identifier: Apache-2.0
"""Converts a tensor-parallel rank's key-value cache to that of a stage on one device, which the head sees, and back.

The head lays out the cache of all stages at once, and their blocks must have one size. A rank that holds half of the
heads needs half the bytes for a block. So it reports all heads and twice its memory, and halves the layout that it
receives. Stages with different tensor-parallel sizes then fit into one pipeline, and the head need not know of ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from zpptool.engines.vllm.compat.kv_cache import (
    AttentionSpec,
    KVCacheConfig,
    KVCacheSpec,
    MLAAttentionSpec,
    UniformTypeKVCacheSpecs,
)


def heads_factor(specs: Mapping[str, KVCacheSpec], total_heads: int, heads_of_rank: int) -> int:
    """The number of heads of the model for each head of a rank.

    1 where a rank's cache is not a share of the whole: latent attention, which each rank holds in full, and layers of
    other kinds (Mamba), whose stages then must all have the same tensor-parallel size.
    """
    plain = all(isinstance(spec, AttentionSpec) and not isinstance(spec, MLAAttentionSpec) for spec in specs.values())
    return max(total_heads // heads_of_rank, 1) if plain and specs else 1


def as_whole(specs: Mapping[str, KVCacheSpec], factor: int) -> dict[str, KVCacheSpec]:
    """What a rank's layers would need on a device that holds all heads."""
    return {name: _scaled(spec, factor, 1) for name, spec in specs.items()}


def as_share(config: KVCacheConfig, factor: int) -> KVCacheConfig:
    """A rank's share of the cache that the head laid out for a device that holds all heads."""
    if factor == 1:
        return config
    tensors = [
        dataclasses.replace(
            tensor,
            size=tensor.size // factor,
            layer_stride=tensor.layer_stride // factor,
            block_stride=tensor.block_stride // factor,
            offset=tensor.offset // factor,
        )
        for tensor in config.kv_cache_tensors
    ]
    groups = [
        dataclasses.replace(group, kv_cache_spec=_scaled(group.kv_cache_spec, 1, factor))
        for group in config.kv_cache_groups
    ]
    return dataclasses.replace(config, kv_cache_tensors=tensors, kv_cache_groups=groups)


def _scaled(spec: KVCacheSpec, times: int, parts: int) -> KVCacheSpec:
    """A layer's spec with its number of heads multiplied by `times` and divided by `parts`."""
    if isinstance(spec, UniformTypeKVCacheSpecs):
        inner = {name: _scaled(one, times, parts) for name, one in spec.kv_cache_specs.items()}
        return dataclasses.replace(spec, kv_cache_specs=inner)
    if times == parts == 1:
        return spec
    return dataclasses.replace(spec, num_kv_heads=spec.num_kv_heads * times // parts)
