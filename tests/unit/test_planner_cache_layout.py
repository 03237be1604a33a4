# SPDX-License-Identifier: Apache-2.0
"""Blocks of the cache from the layout, in numbers that can be checked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.errors import ExitCode, ZppError
from zpptool.partition import LayerRange, even_partition
from zpptool.planner.cache_layout import CachedLayer, CacheGroup, CacheLayout, SequenceBlocks


def group(layers: range, page: int, kind: str = "FullAttentionSpec", **more: object) -> CacheGroup:
    own = tuple(CachedLayer(layer=layer, page_bytes=page) for layer in layers)
    return CacheGroup(kind=kind, block_size=16, layers=own, **more)


PLAIN = CacheLayout(groups=(group(range(4), 100),), rank_factors={1: 1, 2: 2})


def test_the_stage_with_the_fewest_blocks_decides() -> None:
    partition = (LayerRange(0, 3), LayerRange(3, 4))
    assert [PLAIN.block_bytes(own) for own in partition] == [300, 100]
    assert PLAIN.blocks(partition, [3000, 3000]) == 10
    assert PLAIN.blocks(partition, [30_000, 3000]) == 30
    assert PLAIN.blocks(partition, [3099, 3000]) == 10


def test_a_rank_with_half_of_the_heads_has_twice_the_blocks() -> None:
    partition = (LayerRange(0, 3), LayerRange(3, 4))
    assert PLAIN.blocks(partition, [3000, 3000], [2, 1]) == 20


def test_a_number_of_ranks_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(ZppError, match=r"on 4 devices is not known \(sizes that are: 1, 2\)"):
        PLAIN.blocks((LayerRange(0, 4),), [1000], [4])


def test_a_stage_without_a_cache_is_refused() -> None:
    layout = CacheLayout(groups=(group(range(2), 100),))
    with pytest.raises(ZppError, match="stage 1 with layers 2-4 has no layer with a cache") as refused:
        layout.blocks((LayerRange(0, 2), LayerRange(2, 4)), [1000, 1000])
    assert refused.value.exit_code is ExitCode.INVALID


def test_ranks_that_do_not_follow_from_the_whole_have_a_layout_of_their_own() -> None:
    layout = CacheLayout(groups=(group(range(2), 100),), of_ranks={2: CacheLayout(groups=(group(range(2), 80),))})
    partition = (LayerRange(0, 1), LayerRange(1, 2))
    assert layout.blocks(partition, [800, 800], [2, 2]) == 10
    with pytest.raises(ZppError, match="on 2 devices is not known"):
        layout.blocks(partition, [800, 800], [1, 2])


def test_groups_share_blocks() -> None:
    """Layers 0 and 1 in one group, layer 2 in another: a block of all three has the bytes of the larger group."""
    layout = CacheLayout(groups=(group(range(2), 100), group(range(2, 3), 100, "SlidingWindowSpec")))
    assert layout.block_bytes(LayerRange(0, 3)) == 200
    assert layout.block_bytes(LayerRange(1, 3)) == 100


def test_bytes_are_rounded_up_where_blocks_are_aligned() -> None:
    layout = CacheLayout(groups=(group(range(3), 100),), block_bytes_multiple=256)
    assert [layout.block_bytes(LayerRange(0, end)) for end in (1, 2, 3)] == [256, 256, 512]


def test_a_model_without_a_cache_has_one_block() -> None:
    assert CacheLayout(groups=()).blocks((LayerRange(0, 2),), [1 << 30]) == 1


@given(st.integers(1, 5000))
def test_a_sequence_takes_the_blocks_of_its_tokens(tokens: int) -> None:
    listed = tuple(SequenceBlocks(tokens=count, blocks=-(-count // 16)) for count in (1, 128, 256, 512, 1024))
    assert group(range(2), 100, sequence=listed).blocks_of_sequence(tokens) == -(-tokens // 16)


@given(st.integers(1, 5000))
def test_a_state_takes_one_block_and_a_window_no_more_than_its_own(tokens: int) -> None:
    state = tuple(SequenceBlocks(tokens=count, blocks=1) for count in (1, 128, 256))
    assert group(range(2), 100, "MambaSpec", sequence=state).blocks_of_sequence(tokens) == 1
    window = tuple(SequenceBlocks(tokens=count, blocks=min(-(-count // 16), 40)) for count in (1, 128, 512, 1024, 2048))
    assert group(range(2), 100, sequence=window).blocks_of_sequence(tokens) == min(-(-tokens // 16), 40)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 1 << 20))
def test_more_memory_never_gives_fewer_blocks(layers: int, stages: int, memory: int) -> None:
    layout = CacheLayout(groups=(group(range(layers), 64), group(range(0, layers, 2), 128)))
    partition = even_partition(layers, min(stages, layers))
    first = layout.blocks(partition, [memory] * len(partition))
    assert layout.blocks(partition, [memory + 1000] * len(partition)) >= first
    assert first * max(layout.block_bytes(own) for own in partition) <= memory
