# SPDX-License-Identifier: Apache-2.0
"""The pulse of a main loop: it ages only while the loop works."""

from __future__ import annotations

import threading
import time

import pytest

from zpptool.ring.heartbeat import Pulse
from zpptool.ring.loop_times import Rest
from zpptool.ring.status import COMPUTING, READY, WAITING


def test_a_main_loop_ages_only_at_work() -> None:
    pulse = Pulse()
    assert (pulse.phase, pulse.age_s) == (WAITING, 0.0)
    with pulse.at_work(COMPUTING):
        time.sleep(0.02)
        aged_s = pulse.age_s
        assert aged_s >= 0.02
        with pulse.at_rest(Rest.RECEIVE):
            assert pulse.age_s == 0.0
        assert pulse.age_s < aged_s
        pulse.progress()
        assert pulse.phase == COMPUTING
    assert (pulse.phase, pulse.age_s, pulse.steps) == (READY, 0.0, 1)


def test_a_call_that_fails_ends_the_work_too() -> None:
    pulse = Pulse()
    with pytest.raises(ValueError, match="no"), pulse.at_work(COMPUTING):
        raise ValueError("no")
    assert (pulse.phase, pulse.age_s) == (READY, 0.0)


def test_a_thread_that_sends_for_a_main_loop_does_not_let_it_look_alive() -> None:
    pulse = Pulse()

    def send() -> None:
        with pulse.at_rest(Rest.RECEIVE):
            seen.append(pulse.age_s)
            time.sleep(0.02)
        seen.append(pulse.age_s)

    seen: list[float] = []
    with pulse.at_work(COMPUTING):
        time.sleep(0.02)
        sending = threading.Thread(target=send)
        sending.start()
        sending.join()
        assert 0.02 <= seen[0] < seen[1] <= pulse.age_s
