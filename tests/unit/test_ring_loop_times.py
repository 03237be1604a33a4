# SPDX-License-Identifier: Apache-2.0
"""What a main loop spends its time on adds up to the time that passes."""

from __future__ import annotations

import pytest

from zpptool.ring.loop_times import LoopTimes, Rest
from zpptool.ring.status import BUSY_WINDOW_S


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(times: LoopTimes, clock: Clock, *, receive: float, compute: float, send: float) -> None:
    times.begin(computes=True)
    clock.now += receive
    times.rested(Rest.RECEIVE, receive)
    clock.now += compute + send
    times.rested(Rest.SEND, send)
    times.end()


def test_the_times_of_steps_and_of_the_waits_between_them_add_up() -> None:
    clock = Clock()
    times = LoopTimes(clock)
    for _ in range(10):
        step(times, clock, receive=0.2, compute=0.5, send=0.1)
        clock.now += 0.3
    assert times.receive_s == pytest.approx(2.0)
    assert times.compute_s == pytest.approx(5.0)
    assert times.send_s == pytest.approx(1.0)
    assert times.idle_s == pytest.approx(9 * 0.3)


def test_loading_and_warming_up_are_neither_computed_nor_waited_for() -> None:
    clock = Clock()
    times = LoopTimes(clock)
    times.begin(computes=False)
    clock.now += 60.0
    times.end()
    clock.now += 5.0
    step(times, clock, receive=0.0, compute=1.0, send=0.0)
    assert (times.compute_s, times.idle_s) == (pytest.approx(1.0), 0.0)


def test_the_busy_share_is_of_the_last_seconds() -> None:
    clock = Clock()
    times = LoopTimes(clock)
    assert times.busy_share() is None
    for _ in range(40):
        step(times, clock, receive=0.0, compute=0.5, send=0.0)
        times.busy_share()
    assert times.busy_share() == pytest.approx(1.0)
    for _ in range(2 * int(BUSY_WINDOW_S)):
        clock.now += 0.5
        share = times.busy_share()
    assert share == pytest.approx(0.0, abs=0.06)


def test_a_step_in_progress_counts() -> None:
    clock = Clock()
    times = LoopTimes(clock)
    times.busy_share()
    times.begin(computes=True)
    clock.now += 4.0
    assert times.busy_share() == pytest.approx(1.0)
