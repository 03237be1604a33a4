# SPDX-License-Identifier: Apache-2.0
"""How vLLM lays out the KV cache of a model, as data, and the number of blocks that follows for any partition (pure).

vLLM puts the cached layers of the whole model into groups, whatever the partition. A block of a stage has room for the
stage's layers of its largest group, and all stages get the number of blocks of the one with the fewest. So the groups
and the bytes of each layer, which the engine itself reports, determine the blocks of every partition exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from zpptool.document import Count
from zpptool.errors import ZppError, invalid_error
from zpptool.partition import LayerRange, Partition

Positive = Annotated[int, msgspec.Meta(gt=0, le=(1 << 63) - 1)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class CachedLayer(_Record, frozen=True, kw_only=True):
    """What one decoder layer has in a block.

    Attributes:
        layer: its number.
        page_bytes: bytes of one block of it. A layer with two caches in one group is listed twice.
    """

    layer: Count
    page_bytes: Count


class SequenceBlocks(_Record, frozen=True, kw_only=True):
    """How many blocks of a group a sequence of so many tokens takes at most."""

    tokens: Positive
    blocks: Count


class CacheGroup(_Record, frozen=True, kw_only=True):
    """Layers that take blocks together.

    Attributes:
        kind: the engine's name of the group's specification.
        block_size: tokens in a block.
        layers: its layers, in order.
        sequence: blocks of one sequence by its length, for some lengths in ascending order, from one token on.
    """

    kind: str
    block_size: Positive
    layers: tuple[CachedLayer, ...]
    sequence: tuple[SequenceBlocks, ...] = ()

    def blocks_of_sequence(self, tokens: int) -> int:
        """The blocks that a sequence of so many tokens takes: of the next longer length that is listed, where it is
        between two of them. Beyond the last it grows as between the last two."""
        longer = [entry for entry in self.sequence if entry.tokens >= tokens]
        if longer:
            return min(longer[0].blocks, max(-(-tokens // self.block_size), self._fixed))
        if len(self.sequence) < 2:
            return -(-tokens // self.block_size)
        before, last = self.sequence[-2:]
        growing = last.blocks > before.blocks
        return last.blocks + (-(-(tokens - last.tokens) // self.block_size) if growing else 0)

    @property
    def _fixed(self) -> int:
        """The blocks of the shortest sequence: a state takes as many whatever the length."""
        return self.sequence[0].blocks if self.sequence else 1


class CacheLayout(_Record, frozen=True, kw_only=True):
    """The cache of a whole model.

    Attributes:
        groups: all groups; a model without a cache has none.
        block_bytes_multiple: a stage's bytes of a block are rounded up to a multiple of this.
        rank_factors: by tensor-parallel size, how many times the memory of a rank holds as many blocks: a rank that
            has half of the heads needs half of the bytes. A size that is missing does not follow from the whole.
        of_ranks: by such a size, the layout where every stage has so many ranks. Stages of different sizes do not fit
            together then.
    """

    groups: tuple[CacheGroup, ...]
    block_bytes_multiple: Positive = 1
    rank_factors: Mapping[int, Positive] = {}
    of_ranks: Mapping[int, CacheLayout] = {}

    def block_bytes(self, own: LayerRange) -> int:
        """Bytes of one block of the stage that owns these layers, on a single device; 0 where it has no cache."""
        sums = [
            sum(cached.page_bytes for cached in group.layers if own.start <= cached.layer < own.end)
            for group in self.groups
        ]
        multiple = self.block_bytes_multiple
        return -(-max(sums, default=0) // multiple) * multiple

    def factor(self, ranks: int) -> int:
        """How many blocks a rank of a tensor-parallel stage has for each that a single device would have.

        Raises:
            ZppError: (FAILURE) the layout does not know this size.
        """
        if ranks == 1:
            return 1
        if ranks not in self.rank_factors:
            known = ", ".join(map(str, sorted(self.rank_factors))) or "none"
            raise ZppError(
                f"the cache of a stage on {ranks} devices is not known (sizes that are: {known})",
                "Profile the model again with that --tensor-parallel-size.",
            )
        return self.rank_factors[ranks]

    def blocks(self, partition: Partition, available: Sequence[int], ranks: Sequence[int] | None = None) -> int:
        """The number of blocks of every stage.

        Args:
            partition: the layers of each stage.
            available: for each stage, bytes for the cache on each of its devices.
            ranks: for each stage, its tensor-parallel size; 1 for all if None.

        Raises:
            ZppError: (FAILURE) the layout does not know one of these sizes; (INVALID) a stage has no layer with a
                cache, though the model has, which vLLM 0.32 and 0.33 do not start.
        """
        sizes = [1] * len(partition) if ranks is None else ranks
        own = self.of_ranks.get(sizes[0]) if len(set(sizes)) == 1 else None
        if own is not None:
            return own.blocks(partition, available)
        if not self.groups:
            return 1  # the one that the scheduler needs
        counts = []
        for stage, (layers, memory, size) in enumerate(zip(partition, available, sizes, strict=True)):
            per_block = self.block_bytes(layers)
            if not per_block:
                raise invalid_error(
                    f"stage {stage} with layers {layers} has no layer with a cache, and other stages have: vLLM does"
                    " not start such a pipeline",
                    "Choose ranges that give every stage a layer with a cache.",
                )
            counts.append(memory * self.factor(size) // per_block)
        return min(counts)

    def blocks_of_sequence(self, tokens: int) -> int:
        """The blocks that one sequence of so many tokens takes, of all groups together."""
        return sum(group.blocks_of_sequence(tokens) for group in self.groups)
