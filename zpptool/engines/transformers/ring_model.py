# SPDX-License-Identifier: Apache-2.0
"""The model that the stages of a ring form together."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from zpptool.engines.transformers.media import Media
from zpptool.engines.transformers.release_queue import ReleaseQueue
from zpptool.engines.transformers.ring_sequence import RingSequence
from zpptool.engines.transformers.sampling import SamplingParams
from zpptool.ring.head.node import HeadNode


class RingModel:
    """Begins sequences; any number may be in flight. Close it before the node.

    Args:
        node: the head's place in the ring; the stages have loaded before the first sequence.
    """

    def __init__(self, node: HeadNode) -> None:
        self._node = node
        self._releases = ReleaseQueue(node)
        self._numbers = itertools.count()

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        stop_ids: Collection[int],
        sampling: SamplingParams,
        media: Media | None = None,
    ) -> RingSequence:
        """A sequence, of which nothing is computed before its first token is requested."""
        return RingSequence(
            self._node, self._releases, self._numbers.__next__, prompt_ids, max_new_tokens, stop_ids, sampling, media
        )

    def is_healthy(self) -> bool:
        """Whether the pipeline is whole."""
        return self._node.fault is None

    def close(self) -> None:
        """Have the stages forget the sequences that have ended so far."""
        self._releases.close()
