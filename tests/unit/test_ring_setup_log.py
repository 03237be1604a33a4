# SPDX-License-Identifier: Apache-2.0
"""The head's log of set-up calls: it is repeated in each epoch, without links here."""

from __future__ import annotations

from concurrent.futures import Future

from zpptool.errors import stage_error
from zpptool.ring.head.epochs import Event, Failed, Ready
from zpptool.ring.head.pending_calls import PendingCall, PendingCalls
from zpptool.ring.head.setup_log import SetupLog
from zpptool.wire.link_errors import StaleEpoch

LOST = stage_error("stage 1 was lost")


class Stages:
    """Stages whose answers the test gives."""

    def __init__(self) -> None:
        self.calls = PendingCalls()
        self.events: list[Event] = []
        self.asked: list[tuple[int, str, int, Future[list[bytes]]]] = []
        self.setups = SetupLog(self.calls, self.ask, self.events.append)

    def ask(self, call: PendingCall, payload: bytes, setup: int, epoch: int) -> Future[list[bytes]]:
        self.asked.append((epoch, call.method, setup, call.future))
        return call.future

    def add(self, method: str) -> Future[list[bytes]]:
        return self.setups.add(PendingCall(method, num_answers=2, allowed_s=10, long=True), b"")


def test_every_epoch_repeats_all_calls_in_order_and_a_pending_one_is_answered_in_a_later_epoch() -> None:
    stages = Stages()
    stages.setups.replay(1)
    assert stages.events == [Ready(1)]
    stages.calls.let_in(1)
    load, warm = stages.add("load"), stages.add("warm up")
    stages.asked[0][3].set_result([b"a", b"b"])
    assert load.result(0) == [b"a", b"b"]
    stages.calls.suspend()
    stages.setups.suspend()
    stages.asked[1][3].set_exception(StaleEpoch("epoch 1 is over"))
    assert not warm.done()
    stages.setups.replay(2)
    assert [(epoch, method, index) for epoch, method, index, _ in stages.asked[2:]] == [
        (2, "load", 0),
        (2, "warm up", 1),
    ]
    stages.asked[2][3].set_result([b"a", b"other"])
    assert stages.events == [Ready(1)]
    stages.asked[3][3].set_result([b"c", b"d"])
    assert stages.events == [Ready(1), Ready(2)]
    assert (load.result(0), warm.result(0)) == ([b"a", b"b"], [b"c", b"d"])


def test_a_call_that_fails_only_when_repeated_ends_the_run_and_one_that_failed_before_does_not() -> None:
    for first, event in ((None, Failed(LOST)), (LOST, Ready(2))):
        stages = Stages()
        stages.setups.replay(1)
        stages.calls.let_in(1)
        stages.add("load")
        asked = stages.asked[0][3]
        asked.set_result([b"", b""]) if first is None else asked.set_exception(first)
        stages.calls.suspend()
        stages.setups.suspend()
        stages.setups.replay(2)
        stages.asked[1][3].set_exception(LOST)
        assert stages.events[1:] == [event]
