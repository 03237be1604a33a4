# SPDX-License-Identifier: Apache-2.0
"""The steps that are measured, as vLLM's scheduler would describe them: prompts, and single tokens of sequences.

Sequences have disjoint blocks of the cache. What precedes a step counts as computed, as after a hit of the prefix
cache, so a step with a long context needs no long preparation.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from zpptool.engines.vllm.compat.control_objects import (
    CachedRequestData,
    NewRequestData,
    SamplingParams,
    SchedulerOutput,
)
from zpptool.process.measuring import Point

FIRST_TOKEN = 5
"""Token ids below this may be special."""
SPARE_TOKENS = 64
"""How many tokens a sequence may be continued by while it is measured."""


def blocks_needed(points: Sequence[Point], block_sizes: Sequence[int], longest: int) -> int:
    """How many blocks a cache needs for any of the steps, with the one that vLLM keeps empty.

    Args:
        points: the steps.
        block_sizes: of each group of the cache, tokens in a block.
        longest: tokens of the longest sequence.
    """
    return 1 + max(
        point.sequences * sum(_blocks(_length(point, longest), size) for size in block_sizes) for point in points
    )


class Steps:
    """Makes one step after the other. The sequences of a step end with the next first step of others.

    Args:
        block_sizes: of each group of the cache, tokens in a block.
        vocabulary: how many token ids there are.
        longest: tokens of the longest sequence.
    """

    def __init__(self, block_sizes: Sequence[int], vocabulary: int, longest: int) -> None:
        self._block_sizes = block_sizes
        self._longest = longest
        self._random = random.Random(0)
        self._vocabulary = vocabulary
        self._count = 0
        self._names: list[str] = []
        self._computed = 0
        self._outputs = 0

    def begin(self, point: Point, *, all_but: int) -> SchedulerOutput:
        """The first step of new sequences.

        Args:
            point: how many sequences, and how long they are.
            all_but: how many tokens of each sequence are computed in this step; those before count as computed.
        """
        ended, self._names = set(self._names), []
        length = point.context + point.tokens // point.sequences if all_but > 1 else point.context
        length = max(length, all_but)
        self._computed, self._outputs = length, 1
        requests = []
        next_block = 1
        for _ in range(point.sequences):
            blocks = []
            for size in self._block_sizes:
                count = _blocks(_length(point, self._longest), size)
                blocks.append(list(range(next_block, next_block + count)))
                next_block += count
            self._count += 1
            name = f"measured-{self._count}"
            self._names.append(name)
            prompt = [self._token() for _ in range(length)]
            requests.append(
                NewRequestData(
                    req_id=name, prompt_token_ids=prompt, mm_features=[], sampling_params=SamplingParams(),
                    pooling_params=None, block_ids=tuple(blocks), num_computed_tokens=length - all_but,
                    lora_request=None, prefill_token_ids=prompt,
                )
            )  # fmt: skip
        return dataclasses.replace(
            SchedulerOutput.make_empty(),
            scheduled_new_reqs=requests,
            num_scheduled_tokens=dict.fromkeys(self._names, all_but),
            total_num_scheduled_tokens=all_but * len(self._names),
            finished_req_ids=ended,
        )

    def next_token(self) -> SchedulerOutput:
        """One more token of each sequence."""
        count = len(self._names)
        cached = dataclasses.replace(
            CachedRequestData.make_empty(),
            req_ids=list(self._names),
            new_token_ids=[[self._token()] for _ in range(count)],
            new_block_ids=[None] * count,
            num_computed_tokens=[self._computed] * count,
            num_output_tokens=[self._outputs] * count,
        )
        self._computed += 1
        self._outputs += 1
        return dataclasses.replace(
            SchedulerOutput.make_empty(),
            scheduled_cached_reqs=cached,
            num_scheduled_tokens=dict.fromkeys(self._names, 1),
            total_num_scheduled_tokens=count,
        )

    def end(self) -> SchedulerOutput:
        """A step without tokens, after which no sequence is left."""
        ended, self._names = set(self._names), []
        return dataclasses.replace(SchedulerOutput.make_empty(), finished_req_ids=ended)

    def _token(self) -> int:
        return self._random.randrange(min(FIRST_TOKEN, self._vocabulary - 1), self._vocabulary)


def _length(point: Point, longest: int) -> int:
    """The longest that a sequence of a point gets."""
    return min(point.context + point.tokens // point.sequences + SPARE_TOKENS, longest)


def _blocks(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)
