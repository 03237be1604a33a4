# SPDX-License-Identifier: Apache-2.0
"""Dividing prompts is kept where it is measured to be faster, for each size of a burst."""

from __future__ import annotations

from collections import deque

import pytest

from zpptool.engines.vllm.core.prefill_pacer import PrefillPacer
from zpptool.engines.vllm.core.prefill_share import Prompt

TOKENS = 512


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def burst(pacer: PrefillPacer, clock: Clock, seconds: dict[bool, float], *, lost: bool = False) -> bool:
    """Compute one burst in one step, or in several, in so many seconds. Returns whether it was divided."""
    left, divided = TOKENS, False
    steps: deque[int] = deque()
    while left or steps:
        if left:
            chunk = pacer.chunk([Prompt(left, TOKENS - left)])
            divided = divided or chunk is not None
            steps.append(left if chunk is None else min(chunk, left))
            pacer.step_made(steps[-1], steps[-1] * TOKENS // 2, steps[-1])
            left -= steps[-1]
        if len(steps) == 2 or not left:
            clock.now += seconds[divided] * steps.popleft() / TOKENS
            pacer.step_done(lost=lost)
    return divided


@pytest.mark.parametrize("faster", [True, False])
def test_the_faster_way_is_kept_and_the_other_tried_again(faster: bool) -> None:
    clock = Clock()
    pacer = PrefillPacer(2, clock)
    ways = [burst(pacer, clock, {faster: 1.0, not faster: 2.0}) for _ in range(60)]
    assert ways[:2] == [True, False]
    assert ways.count(faster) >= 56
    assert (not faster) in ways[4:]


def test_dividing_is_kept_where_both_ways_are_as_fast() -> None:
    clock = Clock()
    pacer = PrefillPacer(2, clock)
    ways = [burst(pacer, clock, {True: 1.0, False: 1.0}) for _ in range(60)]
    assert ways.count(True) >= 56


def test_a_burst_that_was_lost_is_not_measured() -> None:
    clock = Clock()
    pacer = PrefillPacer(2, clock)
    for _ in range(5):
        assert burst(pacer, clock, {True: 1.0, False: 0.1}, lost=True)
    assert burst(pacer, clock, {True: 1.0, False: 0.1})
    assert not burst(pacer, clock, {True: 1.0, False: 0.1})
