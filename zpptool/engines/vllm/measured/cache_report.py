# SPDX-License-Identifier: Apache-2.0
"""The KV cache of a whole model by vLLM's own specification, as the data from which any partition's blocks follow.

vLLM lays the cache out for a pipeline in which every cached layer is a stage of its own; what a stage's block holds is
then read from the result. That the data reproduce vLLM's layout of real partitions is checked before it is reported.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence

from zpptool.engines.vllm.compat import kv_cache
from zpptool.engines.vllm.compat.engine_config import VllmConfig, kv_heads
from zpptool.engines.vllm.compat.kv_cache import (
    AttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    UniformTypeKVCacheSpecs,
)
from zpptool.engines.vllm.core.kv_layout import cache_bytes
from zpptool.engines.vllm.stage.tp_kv_cache import heads_factor
from zpptool.errors import ZppError
from zpptool.partition import even_partition
from zpptool.planner.cache_layout import CachedLayer, CacheGroup, CacheLayout, SequenceBlocks
from zpptool.planner.device_profile import CacheCosts, Source

_BLOCKS = 1 << 24
"""A number of blocks that is enough for any sequence. Nothing is allocated."""
_SHORTEST = 128
"""Blocks are reported of sequences of one token, of so many tokens, and of lengths that double that."""


def cache_layout(
    config: VllmConfig,
    specs: Mapping[str, KVCacheSpec],
    layer_of: Mapping[str, int],
    num_layers: int,
    ranks: Sequence[int],
) -> CacheLayout:
    """The layout of the cache.

    Args:
        config: the engine's, of a pipeline of one stage, with the layout resolved.
        specs: what each layer of the model needs, by its name.
        layer_of: the decoder layer that it is in, by its name.
        num_layers: the number of decoder layers.
        ranks: the tensor-parallel sizes in question.

    Raises:
        ZppError: (FAILURE) the blocks of a stage do not follow from those of its layers.
    """
    if not specs:
        return CacheLayout(groups=(), rank_factors=dict.fromkeys(ranks, 1))
    alone = kv_cache.kv_cache_configs(config, [{name: spec} for name, spec in specs.items()], _BLOCKS)
    page_of = {name: cache_bytes(one) // one.num_blocks for name, one in zip(specs, alone, strict=True)}
    whole = kv_cache.kv_cache_configs(config, [dict(specs)], _BLOCKS)[0]
    made = CacheLayout(
        groups=tuple(
            CacheGroup(
                kind=type(_first(group.kv_cache_spec)).__name__,
                block_size=group.kv_cache_spec.block_size,
                layers=tuple(CachedLayer(layer=layer_of[name], page_bytes=page_of[name]) for name in group.layer_names),
                sequence=_sequence_blocks(config, group.kv_cache_spec),
            )
            for group in whole.kv_cache_groups
        ),
        rank_factors=_rank_factors(config, specs, ranks),
    )
    _check(config, specs, layer_of, made, num_layers)
    return made


def cache_costs(
    layout: CacheLayout, whole: Mapping[str, KVCacheSpec], layer_of: Mapping[str, int], layer_types: Sequence[str]
) -> CacheCosts:
    """The costs of one layer of each type, from the layout.

    Args:
        layout: of the whole model.
        whole: what each layer needs, by its name.
        layer_of: the decoder layer that it is in, by its name.
        layer_types: the type of each decoder layer.
    """
    tokens: Counter[str] = Counter()
    states: Counter[str] = Counter()
    for group in layout.groups:
        is_state = group.kind == MambaSpec.__name__
        for cached in group.layers:
            kind = layer_types[cached.layer]
            if is_state:
                states[kind] += cached.page_bytes * group.blocks_of_sequence(1)
            else:
                tokens[kind] += -(-cached.page_bytes // group.block_size)
    at_most: dict[str, int] = {}
    for name, spec in whole.items():
        kind, window = layer_types[layer_of[name]], _window(spec)
        if window is not None:
            at_most[kind] = max(window, at_most.get(kind, 0))
    count = Counter(layer_types)
    pages = {cached.page_bytes for group in layout.groups for cached in group.layers}
    return CacheCosts(
        bytes_per_token={kind: -(-total // count[kind]) for kind, total in tokens.items()},
        bytes_per_sequence={kind: -(-total // count[kind]) for kind, total in states.items()},
        tokens_at_most=at_most,
        block_size=min((group.block_size for group in layout.groups), default=1),
        page_bytes=pages.pop() if len(pages) == 1 else 0,
        layout=layout,
        source=Source.MEASURED,
    )


def _sequence_blocks(config: VllmConfig, spec: KVCacheSpec) -> tuple[SequenceBlocks, ...]:
    longest = int(config.model_config.max_model_len)
    lengths = [_SHORTEST]
    while lengths[-1] * 2 < longest:
        lengths.append(lengths[-1] * 2)
    lengths = [1, *(length for length in lengths if length < longest), longest]
    return tuple(
        SequenceBlocks(tokens=length, blocks=kv_cache.blocks_of_sequence(config, spec, length)) for length in lengths
    )


def _rank_factors(config: VllmConfig, specs: Mapping[str, KVCacheSpec], ranks: Sequence[int]) -> dict[int, int]:
    """The factors of the sizes that are known. Only where all layers have keys and values by heads, or all have latent
    attention, does the size of a rank's cache follow from that of the whole, and only if the heads divide evenly."""
    kinds = {(isinstance(spec, AttentionSpec), isinstance(spec, MLAAttentionSpec)) for spec in specs.values()}
    factors = {1: 1}
    for size in ranks:
        if size > 1 and kinds in ({(True, False)}, {(True, True)}):
            divided = copy.copy(config)
            divided.parallel_config = copy.copy(config.parallel_config)
            divided.parallel_config.tensor_parallel_size = size
            total, of_rank = kv_heads(divided)
            if total % size == 0 or size % total == 0:
                factors[size] = heads_factor(specs, total, of_rank)
    return factors


def _check(
    config: VllmConfig,
    specs: Mapping[str, KVCacheSpec],
    layer_of: Mapping[str, int],
    made: CacheLayout,
    num_layers: int,
) -> None:
    """Compare with vLLM's own layout of even partitions. vLLM 0.32 does not lay out a stage without a cached layer (it
    divides by the bytes of its blocks), so such a partition is left out."""
    for stages in range(1, min(num_layers, 4) + 1):
        partition = even_partition(num_layers, stages)
        own = [
            {name: spec for name, spec in specs.items() if owned.start <= layer_of[name] < owned.end}
            for owned in partition
        ]
        if not all(own):
            continue
        real = [cache_bytes(one) // one.num_blocks for one in kv_cache.kv_cache_configs(config, own, _BLOCKS)]
        ours = [made.block_bytes(own) for own in partition]
        if real != ours:
            raise ZppError(
                f"vLLM's cache of {stages} stages has blocks of {real} bytes, and the sum of their layers is {ours}",
                "Report this with the model's config.json; the profile can be made with --engine transformers.",
            )


def _first(spec: KVCacheSpec) -> KVCacheSpec:
    return next(iter(spec.kv_cache_specs.values())) if isinstance(spec, UniformTypeKVCacheSpecs) else spec


def _window(spec: KVCacheSpec) -> int | None:
    """The tokens of a sequence that a layer keeps; None for all."""
    for name in ("sliding_window", "attention_chunk_size"):
        size = getattr(spec, name, None)
        if isinstance(size, int) and size > 0:
            return size
    return None
