# SPDX-License-Identifier: Apache-2.0
"""vLLM's description of the KV cache, and how vLLM lays it out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    UniformTypeKVCacheSpecs,
)

from zpptool.engines.vllm.compat.engine_config import VllmConfig
from zpptool.errors import ZppError

__all__ = [
    "AttentionSpec",
    "KVCacheConfig",
    "KVCacheGroupSpec",
    "KVCacheSpec",
    "MLAAttentionSpec",
    "MambaSpec",
    "UniformTypeKVCacheSpecs",
    "blocks_of_sequence",
    "kv_cache_configs",
    "resolve_layout",
]

LAYOUT_PARAMETERS = ("vllm_config", "kv_cache_specs", "available_memory")
"""The parameters of vLLM 0.32's function that lays out the cache."""
GROUPS_PARAMETER = "global_kv_cache_groups"
"""0.33's function takes this one too: the groups of all stages' layers, which 0.32's makes itself."""


def kv_cache_configs(
    config: VllmConfig, specs: Sequence[dict[str, KVCacheSpec]], num_blocks: int
) -> list[KVCacheConfig]:
    """Lay out each stage's cache.

    Args:
        config: the head's.
        specs: for each stage, what its layers need, by layer name.
        num_blocks: the number of blocks of every stage's cache.

    Raises:
        ZppError: (FAILURE) this release of vLLM lays out caches in another way.
    """
    from vllm.v1.engine.core import get_kv_cache_configs  # already imported by the caller, an engine core process

    parameters = tuple(inspect.signature(get_kv_cache_configs).parameters)
    if parameters not in (LAYOUT_PARAMETERS, (*LAYOUT_PARAMETERS, GROUPS_PARAMETER)):
        raise ZppError(
            "this release of vLLM lays out the cache in another way than the one that is known here",
            "Stop the pipeline, which completes its answers, and start it again with these ranges.",
        )
    cache = copy.copy(config.cache_config)
    cache.num_gpu_blocks_override = num_blocks
    with_blocks = copy.copy(config)
    with_blocks.cache_config = cache
    arguments: list[Any] = [with_blocks, list(specs), [0] * len(specs)]
    if GROUPS_PARAMETER in parameters:
        from vllm.v1.engine.core import get_global_kv_cache_groups

        arguments.append(get_global_kv_cache_groups(with_blocks, list(specs)))
    laid_out: list[KVCacheConfig] = get_kv_cache_configs(*arguments)
    return laid_out


def resolve_layout(config: VllmConfig, layouts: Sequence[list[str]], specs: Sequence[KVCacheSpec]) -> str:
    """Choose the layout of the cache as the engine core does, and record it in `config`.

    Args:
        config: the head's.
        layouts: for each stage, the layouts that it supports.
        specs: what every layer needs.

    Returns:
        the layout's name.
    """
    from vllm.v1.engine.core import resolve_kv_cache_layout

    name: str = resolve_kv_cache_layout(config, list(layouts), specs).name
    return name


def blocks_of_sequence(config: VllmConfig, spec: KVCacheSpec, tokens: int) -> int:
    """The most blocks that a sequence of so many tokens takes of a group with this specification."""
    shorter = copy.copy(config)
    shorter.model_config = copy.copy(config.model_config)
    shorter.model_config.max_model_len = tokens
    if isinstance(spec, UniformTypeKVCacheSpecs):
        pages: int = spec.max_memory_usage_pages(shorter)
        return pages
    return -(-int(spec.max_memory_usage_bytes(shorter)) // int(spec.page_size_bytes))
