# SPDX-License-Identifier: Apache-2.0
"""The bytes that the caches of a stage take for a number of requests.

Where a profile has the engine's own layout of blocks, they follow from it exactly; otherwise each type of layer has
bytes for a token and for a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from zpptool.planner.cache_layout import CacheLayout
from zpptool.planner.device_profile import CacheCosts
from zpptool.planner.devices import Workload

NULL_BLOCK = 1
"""The block that vLLM keeps for itself."""


class StageCaches:
    """The caches of stages on `width` devices.

    Args:
        kv: what one layer of each type takes, or the engine's layout.
        types: the type of each layer.
        width: how many devices share a stage.
        workload: the lengths of requests.
        sequences: how many requests are in progress.

    Raises:
        ZppError: (FAILURE) the layout does not know this width.
    """

    def __init__(self, kv: CacheCosts, types: Sequence[str], width: int, workload: Workload, sequences: int) -> None:
        self._width = width
        self._blocks = None if kv.layout is None else _Blocks(kv.layout, len(types), width, workload, sequences)
        each = [bytes_of(kv, kind, workload.tokens) for kind in types]
        longest = [bytes_of(kv, kind, workload.longest) for kind in types]
        self._sequence = [0, *accumulate(each)]
        self._all = [0, *accumulate(max(sequences * own, most) for own, most in zip(each, longest, strict=True))]

    def of_all(self, start: int, end: int) -> int:
        """Bytes on each device for all typical requests in progress, and at least for one of the longest."""
        if self._blocks is not None:
            return self._blocks.needed * self._blocks.bytes(start, end)
        return -(-(self._all[end] - self._all[start]) // self._width)

    def of_one(self, start: int, end: int) -> int:
        """Bytes on each device for one typical request."""
        if self._blocks is not None:
            return self._blocks.of_one * self._blocks.bytes(start, end)
        return -(-(self._sequence[end] - self._sequence[start]) // self._width)


class _Blocks:
    """Bytes of a block, and how many blocks requests take, by the engine's layout."""

    def __init__(self, layout: CacheLayout, count: int, width: int, workload: Workload, sequences: int) -> None:
        own = layout.of_ranks.get(width)
        self._layout = layout if own is None else own
        self._factor = layout.factor(width) if own is None else 1
        self._sums = []
        for group in self._layout.groups:
            pages = [0] * count
            for cached in group.layers:
                if cached.layer < count:
                    pages[cached.layer] += cached.page_bytes
            self._sums.append([0, *accumulate(pages)])
        self.of_one = self._layout.blocks_of_sequence(workload.tokens)
        self.needed = NULL_BLOCK + max(sequences * self.of_one, self._layout.blocks_of_sequence(workload.longest))

    def bytes(self, start: int, end: int) -> int:
        """Bytes of one block of the layers `[start, end)` on each device; as `CacheLayout.block_bytes`."""
        largest = max((sums[end] - sums[start] for sums in self._sums), default=0)
        multiple = self._layout.block_bytes_multiple
        return -(-(-(-largest // multiple) * multiple) // self._factor)


def bytes_of(kv: CacheCosts, kind: str, tokens: int) -> int:
    """Bytes of one sequence's cache in one layer of a type, in whole blocks."""
    kept = min(tokens, kv.tokens_at_most.get(kind, tokens))
    blocks = -(-kept // kv.block_size)
    return kv.bytes_per_token.get(kind, 0) * blocks * kv.block_size + kv.bytes_per_sequence.get(kind, 0)
