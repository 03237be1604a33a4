# SPDX-License-Identifier: Apache-2.0
"""What a stage remembers of its set-up, what the head repeats, and what it tells of losses: without links."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from zpptool.errors import ExitCode, ZppError, stage_error
from zpptool.ring.head.epochs import Event, Failed, Ready
from zpptool.ring.head.pending_calls import OpenCall, OpenCalls, drop
from zpptool.ring.head.recoveries import MOST_IN_A_ROW, Recoveries
from zpptool.ring.head.setup_log import SetUps
from zpptool.ring.messages import Call, StageFacts
from zpptool.ring.stage.setup_history import History, SetUpOtherwise
from zpptool.wire.link_errors import StaleEpoch

LOST = stage_error("stage 1 was lost")


def call(index: int, method: str = "load") -> Call:
    return Call(number=7, method=method, from_all=True, long=True, setup=index)


def test_what_was_done_once_in_a_life_is_remembered() -> None:
    history, done = History(), []

    def do() -> bytes:
        done.append(len(done))
        return b"%d" % len(done)

    assert [history.answer(call(index), b"", do) for index in (0, 1, 0, 1, 2)] == [b"1", b"2", b"1", b"2", b"3"]
    assert len(done) == 3


def test_a_failure_is_remembered_and_a_call_that_was_cut_short_is_not() -> None:
    history = History()

    def fail() -> bytes:
        raise ZppError("no such file")

    def be_cut_short() -> bytes:
        raise StaleEpoch("that epoch is over")

    with pytest.raises(StaleEpoch):
        history.answer(call(0), b"", be_cut_short)
    with pytest.raises(ZppError, match="no such file"):
        history.answer(call(0), b"", fail)
    with pytest.raises(ZppError, match="no such file"):
        history.answer(call(0), b"", lambda: b"now it would work")


@pytest.mark.parametrize(
    ("asked", "payload"), [(call(0, "other"), b"x"), (call(0), b"y"), (call(2), b"x")], ids=["method", "words", "gap"]
)
def test_another_set_up_needs_another_life(asked: Call, payload: bytes) -> None:
    history = History()
    history.answer(call(0), b"x", lambda: b"")
    with pytest.raises(SetUpOtherwise) as refused:
        history.answer(asked, payload, lambda: b"")
    assert refused.value.exit_code is ExitCode.FAILURE


class Stages:
    """Stages that are asked and answer when they are told to."""

    def __init__(self) -> None:
        self.calls = OpenCalls()
        self.events: list[Event] = []
        self.asked: list[tuple[int, str, int, Future[list[bytes]]]] = []
        self.setups = SetUps(self.calls, self.ask, self.events.append)

    def ask(self, call: OpenCall, payload: bytes, setup: int, epoch: int) -> Future[list[bytes]]:
        self.asked.append((epoch, call.method, setup, call.future))
        return call.future

    def add(self, method: str) -> Future[list[bytes]]:
        return self.setups.add(OpenCall(method, wanted=2, allowed_s=10, long=True), b"")


def test_every_epoch_asks_all_in_order_and_what_was_pending_is_answered_in_a_later_one() -> None:
    stages = Stages()
    stages.setups.admit(1)
    assert stages.events == [Ready(1)]
    stages.calls.let_in(1)
    load, warm = stages.add("load"), stages.add("warm up")
    stages.asked[0][3].set_result([b"a", b"b"])
    assert load.result(0) == [b"a", b"b"]
    stages.calls.shut()
    stages.setups.shut()
    stages.asked[1][3].set_exception(StaleEpoch("epoch 1 is over"))
    assert not warm.done()
    stages.setups.admit(2)
    assert [(epoch, method, index) for epoch, method, index, _ in stages.asked[2:]] == [
        (2, "load", 0),
        (2, "warm up", 1),
    ]
    stages.asked[2][3].set_result([b"a", b"other"])
    assert stages.events == [Ready(1)]
    stages.asked[3][3].set_result([b"c", b"d"])
    assert stages.events == [Ready(1), Ready(2)]
    assert (load.result(0), warm.result(0)) == ([b"a", b"b"], [b"c", b"d"])


def test_a_newborn_stage_that_cannot_do_what_was_done_ends_the_ring_and_one_that_fails_as_before_does_not() -> None:
    for first, event in ((None, Failed(LOST)), (LOST, Ready(2))):
        stages = Stages()
        stages.setups.admit(1)
        stages.calls.let_in(1)
        stages.add("load")
        asked = stages.asked[0][3]
        asked.set_result([b"", b""]) if first is None else asked.set_exception(first)
        stages.calls.shut()
        stages.setups.shut()
        stages.setups.admit(2)
        stages.asked[1][3].set_exception(LOST)
        assert stages.events[1:] == [event]


def test_calls_are_let_in_to_whole_rings_and_to_their_own_epoch_only() -> None:
    calls = OpenCalls()

    def made() -> OpenCall:
        return OpenCall("step", wanted=1, allowed_s=10, long=False)

    with pytest.raises(StaleEpoch):
        calls.enter(made())
    calls.let_in(3)
    number, epoch = calls.enter(one := made(), only_in=3)
    assert epoch == 3
    with pytest.raises(StaleEpoch):
        calls.enter(made(), only_in=2)
    drop(calls.shut(), 3, "stage 1 was lost")
    assert "step was dropped with epoch 3: stage 1 was lost" in str(one.future.exception(0))
    assert not calls.settle(number, 0, b"late")
    calls.break_all(LOST)
    with pytest.raises(ZppError, match="stage 1 was lost"):
        calls.enter(made())
    with pytest.raises(ZppError, match="stage 1 was lost"):
        calls.wait_until_whole()


def facts(stage: int, pid: int) -> StageFacts:
    return StageFacts(stage=stage, host="here", pid=pid, num_stages=2, layers=(0, 1), agreed={})


def test_a_recovery_is_one_paragraph_however_many_losses_it_took() -> None:
    recoveries = Recoveries(10.0)
    assert recoveries.whole(1, 0) == ""
    before = (facts(0, 1), facts(1, 2))
    recoveries.lost(LOST)
    recoveries.lost(stage_error("stage 0 was lost"))
    recoveries.answered(before, (facts(0, 1), facts(1, 3)))
    told = recoveries.whole(3, 4)
    assert "in epoch 3" in told
    assert "It began with this: stage 1 was lost. Losses that followed on the way: 1." in told
    assert "New: stage 1 (here, pid 3)." in told
    assert "(4 set-up calls)" in told
    assert recoveries.count == 1


def test_losses_in_a_row_with_nothing_computed_in_between_are_given_up() -> None:
    recoveries = Recoveries(1000.0)
    for epoch in range(MOST_IN_A_ROW):
        recoveries.lost(LOST)
        assert recoveries.too_late(()) is None
        recoveries.whole(epoch, 0)
    recoveries.lost(LOST)
    fault = recoveries.too_late(())
    assert fault is not None
    assert "times in a row" in fault.message
    recoveries.whole(50, 0)
    recoveries.has_answered(50)
    recoveries.lost(LOST)
    assert recoveries.too_late(()) is None
