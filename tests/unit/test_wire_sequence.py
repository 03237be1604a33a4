# SPDX-License-Identifier: Apache-2.0
"""Lost, repeated and foreign messages are noticed; a restarted sender is not a fault."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zpptool.wire.sequence import SequenceCheck


def faults(messages: list[tuple[int, int]], *, late_join: bool = False) -> list[tuple[int, int]]:
    """(expected, got) of every fault in these (session, sequence) pairs."""
    check = SequenceCheck(late_join=late_join)
    found = [check.accept(session, sequence) for session, sequence in messages]
    return [(fault.expected, fault.got) for fault in found if fault is not None]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=10))
def test_senders_that_replace_each_other_and_count_from_zero_are_no_fault(lengths):
    assert faults([(session, number) for session, length in enumerate(lengths) for number in range(length)]) == []


@given(length=st.integers(2, 40), data=st.data())
def test_whatever_is_dropped_is_noticed_with_the_next_message(length, data):
    kept = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1)))
    gaps = [(due, got) for due, got in zip([0, *(number + 1 for number in kept)], kept, strict=False) if due != got]
    assert faults([(5, number) for number in kept]) == gaps


@given(st.permutations(range(6)))
def test_an_order_is_accepted_only_when_it_is_right(order):
    assert (faults([(5, number) for number in order]) == []) == (list(order) == list(range(6)))


def test_a_repeat_is_dropped_without_losing_count():
    assert faults([(5, 0), (5, 1), (5, 1), (5, 2)]) == [(2, 1)]


def test_a_gap_is_told_once():
    assert faults([(5, 0), (5, 4), (5, 5)]) == [(1, 4)]


def test_a_new_session_has_to_begin_at_zero():
    assert faults([(5, 0), (6, 3), (6, 4)]) == [(0, 3)]


def test_a_replaced_sender_that_still_sends_is_a_second_sender():
    assert faults([(5, 0), (6, 0), (5, 1), (6, 1)]) == [(1, 1)]


def test_a_late_receiver_takes_the_count_as_it_is():
    assert faults([(5, 100), (5, 101), (6, 7), (6, 9)], late_join=True) == [(8, 9)]
