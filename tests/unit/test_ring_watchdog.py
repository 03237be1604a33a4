# SPDX-License-Identifier: Apache-2.0
"""The head's time limits: late calls, hung stages, and the wait for the cause of a loss."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rings import stage
from zpptool.ring.head.epochs import Lost
from zpptool.ring.head.event_queue import EventQueue
from zpptool.ring.head.pending_calls import PendingCall, PendingCalls
from zpptool.ring.head.recoveries import Recoveries
from zpptool.ring.head.view import RingView
from zpptool.ring.head.watchdog import CAUSE_S, Watchdog
from zpptool.ring.status import COMPUTING
from zpptool.ring.timeouts import RingTimeouts
from zpptool.wire.link import LinkSender, PeerLost
from zpptool.wire.message.framing import HEAD

LOST = PeerLost("the head has lost stage 0")


class Head:
    """The parts of a head that its watchdog looks at; the ring has three stages and became whole just now."""

    def __init__(self, downstream: LinkSender, *, beat_s: float = 60.0, recovery_s: float = 0.0) -> None:
        timeouts = RingTimeouts(start_s=10.0, step_s=10.0, beat_s=beat_s, recovery_s=recovery_s)
        self.calls = PendingCalls()
        self.view = RingView(3, downstream)
        self.recoveries = Recoveries(recovery_s)
        self.events = EventQueue(lambda: None)
        self.watchdog = Watchdog(self.calls, self.view, self.recoveries, self.events, timeouts)
        self.recoveries.whole(1, 0)
        self.calls.let_in(1)

    def begin(self, *, num_answers: int = 3, allowed_s: float = 10.0, long: bool = False) -> int:
        """Open a call; its number."""
        number, _epoch = self.calls.add(PendingCall("step", num_answers, allowed_s, long))
        return number


@pytest.fixture
def downstream(tmp_path: Path) -> Iterator[LinkSender]:
    with LinkSender(f"ipc://{tmp_path}/local", stage=HEAD, peer=0) as link:
        yield link


def test_a_late_call_names_the_stages_without_an_answer(downstream: LinkSender) -> None:
    head = Head(downstream)
    number = head.begin(allowed_s=0.02)
    assert head.watchdog.overdue(gathering=False) is None
    head.calls.settle(number, 1, b"")
    time.sleep(0.05)
    late = head.watchdog.overdue(gathering=False)
    assert late is not None
    assert late.message == "step was not answered in 0.02 s by stage 0, 2"


def test_a_late_call_for_the_last_stage_names_only_that(downstream: LinkSender) -> None:
    head = Head(downstream)
    head.begin(num_answers=1, allowed_s=-1.0)
    late = head.watchdog.overdue(gathering=False)
    assert late is not None
    assert late.message.endswith("by stage 2")


def test_a_recovery_is_late_only_while_stages_are_gathered(downstream: LinkSender) -> None:
    head = Head(downstream, recovery_s=0.02)
    head.recoveries.lost(LOST)
    time.sleep(0.05)
    assert head.watchdog.overdue(gathering=False) is None
    late = head.watchdog.overdue(gathering=True)
    assert late is not None
    assert "stage 0 has not come back in 0.02 s" in late.message


def test_a_stage_hangs_only_at_a_step_and_some_time_after_the_ring_became_whole(downstream: LinkSender) -> None:
    head = Head(downstream, beat_s=0.5)
    head.view.update((stage(0), stage(1, COMPUTING, beat_age_s=5.0), stage(2)))
    head.begin(long=True)
    time.sleep(0.55)
    head.view.update((stage(0), stage(1, COMPUTING, beat_age_s=5.0), stage(2)))
    assert head.watchdog.hung_stage() is None, "loading may take minutes"
    head.begin()
    hung = head.watchdog.hung_stage()
    assert hung is not None
    assert "stage 1 hangs (here, pid 7): its main loop has not moved for 5.0 s" in hung.message
    head.recoveries.whole(2, 0)
    assert head.watchdog.hung_stage() is None, "the reports are older than the epoch"


def test_a_loss_counts_at_once_where_losses_are_survived(downstream: LinkSender) -> None:
    head = Head(downstream, recovery_s=10.0)
    head.watchdog.suspect(LOST, 4)
    assert head.events.next_event() == Lost(4, LOST)
    assert head.watchdog.confirmed_loss() is None


def test_a_loss_that_ends_the_run_leaves_time_for_a_report_of_its_cause(downstream: LinkSender) -> None:
    head = Head(downstream)
    head.watchdog.suspect(LOST, 4)
    assert head.events.next_event() is None
    assert head.watchdog.confirmed_loss() is None
    time.sleep(CAUSE_S + 0.05)
    assert head.watchdog.confirmed_loss() is LOST
    head.watchdog.forget_suspicion()
    assert head.watchdog.confirmed_loss() is None
