# SPDX-License-Identifier: Apache-2.0
"""The set-up calls that a stage remembers: each is executed once per process."""

from __future__ import annotations

import pytest

from zpptool.errors import ExitCode, ZppError
from zpptool.ring.messages import Call
from zpptool.ring.stage.setup_history import SetupHistory, SetupMismatch
from zpptool.wire.link_errors import StaleEpoch


def call(index: int, method: str = "load") -> Call:
    return Call(number=7, method=method, from_all=True, long=True, setup=index)


def test_each_call_is_executed_once() -> None:
    history, done = SetupHistory(), []

    def do() -> bytes:
        done.append(len(done))
        return b"%d" % len(done)

    assert [history.answer(call(index), b"", do) for index in (0, 1, 0, 1, 2)] == [b"1", b"2", b"1", b"2", b"3"]
    assert len(done) == 3


def test_a_failure_is_remembered_and_an_interrupted_call_is_not() -> None:
    history = SetupHistory()

    def fail() -> bytes:
        raise ZppError("no such file")

    def be_interrupted() -> bytes:
        raise StaleEpoch("that epoch is over")

    with pytest.raises(StaleEpoch):
        history.answer(call(0), b"", be_interrupted)
    with pytest.raises(ZppError, match="no such file"):
        history.answer(call(0), b"", fail)
    with pytest.raises(ZppError, match="no such file"):
        history.answer(call(0), b"", lambda: b"now it would work")


@pytest.mark.parametrize(
    ("asked", "payload"), [(call(0, "other"), b"x"), (call(0), b"y"), (call(2), b"x")], ids=["method", "payload", "gap"]
)
def test_another_set_up_needs_another_process(asked: Call, payload: bytes) -> None:
    history = SetupHistory()
    history.answer(call(0), b"x", lambda: b"")
    with pytest.raises(SetupMismatch) as refused:
        history.answer(asked, payload, lambda: b"")
    assert refused.value.exit_code is ExitCode.FAILURE
