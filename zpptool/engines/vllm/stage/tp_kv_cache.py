# SPDX-License-Identifier: Apache-2.0
"""A tensor-parallel rank's key-value cache as the head sees it: that of a stage on one device.

The head lays out the cache of all stages at once and wants their blocks alike. A rank that holds half of the heads has
half of the bytes a block; so it speaks of whole heads and twice its memory, and halves what it is then told. So stages
with different tensor-parallel sizes fit into one pipeline, and the head need not know of ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheConfig, MLAAttentionSpec, UniformTypeKVCacheSpecs


def heads_factor(specs: Mapping[str, Any], total_heads: int, heads_of_rank: int) -> int:
    """How many times a rank's heads the model's are.

    1 where a rank's cache is no share of the whole one: latent attention, which each rank holds in full, and layers of
    other kinds (Mamba), whose stages then need one tensor-parallel size.
    """
    plain = all(isinstance(spec, AttentionSpec) and not isinstance(spec, MLAAttentionSpec) for spec in specs.values())
    return max(total_heads // heads_of_rank, 1) if plain and specs else 1


def as_whole(specs: Mapping[str, Any], factor: int) -> dict[str, Any]:
    """What a rank's layers want, told for a device that holds all heads."""
    return {name: _scaled(spec, factor, 1) for name, spec in specs.items()}


def as_share(config: KVCacheConfig, factor: int) -> KVCacheConfig:
    """What a rank allocates, of what the head laid out for a device that holds all heads."""
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


def _scaled(spec: Any, times: int, parts: int) -> Any:
    """A layer's spec with so many times the heads, or so many parts of them."""
    if isinstance(spec, UniformTypeKVCacheSpecs):
        inner = {name: _scaled(one, times, parts) for name, one in spec.kv_cache_specs.items()}
        return dataclasses.replace(spec, kv_cache_specs=inner)
    if times == parts == 1:
        return spec
    return dataclasses.replace(spec, num_kv_heads=spec.num_kv_heads * times // parts)
