# SPDX-License-Identifier: Apache-2.0
"""A rank's share of the cache that the head lays out for all heads is what vLLM would have laid out for the rank."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
from vllm.v1.kv_cache_interface import (  # noqa: E402
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from zpptool.engines.vllm.stage.tp_kv_cache import as_share, as_whole, heads_factor  # noqa: E402

BLOCKS = 11


def attention(heads: int) -> dict[str, Any]:
    common = {"block_size": 16, "num_kv_heads": heads, "head_size": 64, "dtype": torch.bfloat16}
    return {"a": FullAttentionSpec(**common), "b": SlidingWindowSpec(**common, sliding_window=128)}


def layout(specs: dict[str, Any]) -> KVCacheConfig:
    """Each layer's blocks in a tensor of its own."""
    tensors = [
        KVCacheTensor(BLOCKS * spec.page_size_bytes, [name], BLOCKS * spec.page_size_bytes, spec.page_size_bytes)
        for name, spec in specs.items()
    ]
    return KVCacheConfig(BLOCKS, tensors, [KVCacheGroupSpec([name], spec) for name, spec in specs.items()])


@pytest.mark.parametrize(("total", "of_rank"), [(8, 8), (8, 4), (8, 1), (2, 1), (1, 1)])
def test_a_rank_gets_its_share_of_the_layout_for_all_heads(total: int, of_rank: int) -> None:
    rank, whole = attention(of_rank), attention(total)
    factor = heads_factor(rank, total, of_rank)
    assert as_whole(rank, factor) == whole
    assert as_share(layout(whole), factor) == layout(rank)


def test_a_cache_that_is_not_divided_by_heads_is_unchanged() -> None:
    latent = {"a": MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=576, dtype=torch.bfloat16)}
    mamba = {**attention(1), "m": MambaSpec(block_size=16, shapes=((2, 3),), dtypes=(torch.float32,))}
    for specs in (latent, mamba, {}):
        factor = heads_factor(specs, 8, 1)
        assert factor == 1
        assert as_whole(specs, factor) == specs
        assert as_share(layout(specs), factor) == layout(specs)
