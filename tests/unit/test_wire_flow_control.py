# SPDX-License-Identifier: Apache-2.0
"""A sender never has more in flight than the window, and never waits for a receiver that has taken everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zpptool.wire.protocol.flow_control import AcknowledgementSchedule, Credit, Window

windows = st.builds(Window, st.integers(1, 9), st.integers(1, 1000))


@given(window=windows, sizes=st.lists(st.integers(0, 2000), max_size=60), data=st.data())
def test_what_is_in_flight_stays_within_the_window_and_nothing_is_stuck(window, sizes, data):
    credit, acknowledgements = Credit(window), AcknowledgementSchedule(window)
    in_flight: list[int] = []
    for size in sizes:
        while not credit.allows(size) or (in_flight and data.draw(st.booleans())):
            assert in_flight, "everything is taken, but nothing may be sent"
            acknowledgements.take(in_flight.pop(0))
            if acknowledgements.due:
                assert credit.receive(acknowledgements.taken)
                acknowledgements.sent()
        credit.spend(size)
        in_flight.append(size)
        assert len(in_flight) <= window.messages
        assert sum(in_flight) <= max(window.nbytes, window.nbytes // 4 + size)


def test_a_receiver_that_acknowledges_what_was_never_sent_is_refused():
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
