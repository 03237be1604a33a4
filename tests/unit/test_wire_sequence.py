# SPDX-License-Identifier: Apache-2.0
"""Lost, repeated, reordered and foreign messages are noticed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zpptool.wire.protocol.sequence import SequenceCheck


def faults(messages: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(expected, got) of every fault in these (session, sequence) pairs, in session 5."""
    check = SequenceCheck(5)
    found = [check.accept(session, sequence) for session, sequence in messages]
    return [(fault.expected, fault.got) for fault in found if fault is not None]


@given(length=st.integers(2, 40), data=st.data())
def test_a_dropped_message_is_noticed_with_the_next_one(length, data):
    kept = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1)))
    gaps = [(due, got) for due, got in zip([0, *(number + 1 for number in kept)], kept, strict=False) if due != got]
    assert faults([(5, number) for number in kept]) == gaps


@given(st.permutations(range(6)))
def test_an_order_is_accepted_only_when_it_is_right(order):
    assert (faults([(5, number) for number in order]) == []) == (list(order) == list(range(6)))


def test_a_repeat_is_dropped_without_losing_count():
    assert faults([(5, 0), (5, 1), (5, 1), (5, 2)]) == [(2, 1)]


def test_a_gap_is_reported_once():
    assert faults([(5, 0), (5, 4), (5, 5)]) == [(1, 4)]


def test_another_session_is_a_fault_and_does_not_count():
    assert faults([(5, 0), (6, 1), (5, 1), (6, 0)]) == [(1, 1), (2, 0)]
