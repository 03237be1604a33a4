# SPDX-License-Identifier: Apache-2.0
"""A sender never has more under way than the window, and never waits for a receiver that has taken everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zpptool.wire.protocol.flow_control import Credit, Debt, Window

windows = st.builds(Window, st.integers(1, 9), st.integers(1, 1000))


@given(window=windows, sizes=st.lists(st.integers(0, 2000), max_size=60), data=st.data())
def test_what_is_under_way_stays_within_the_window_and_nothing_is_stuck(window, sizes, data):
    credit, debt = Credit(window), Debt(window)
    under_way: list[int] = []
    for size in sizes:
        while not credit.allows(size) or (under_way and data.draw(st.booleans())):
            assert under_way, "everything is taken, and yet nothing may be sent"
            debt.take(under_way.pop(0))
            if debt.due:
                assert credit.receive(debt.taken)
                debt.told()
        credit.spend(size)
        under_way.append(size)
        assert len(under_way) <= window.messages
        assert sum(under_way) <= max(window.nbytes, window.nbytes // 4 + size)


def test_a_receiver_that_claims_what_was_never_sent_is_not_believed():
    credit = Credit(Window(4, 100))
    credit.spend(50)
    assert not credit.receive(2)
    assert (credit.taken, credit.pending_bytes) == (0, 50)
    assert credit.receive(1)
    assert credit.receive(0)
    assert (credit.taken, credit.pending_bytes) == (1, 0)


def test_two_sides_agree_on_the_smaller_window():
    assert Window(8, 100).within(Window(4, 200)) == Window(4, 100)
    assert Window(0, 0).within(Window(4, 200)) == Window(1, 1)
