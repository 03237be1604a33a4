# SPDX-License-Identifier: Apache-2.0
"""The head's table of calls: which it admits, and how each one ends."""

from __future__ import annotations

import pytest

from zpptool.errors import ZppError, stage_error
from zpptool.ring.head.pending_calls import PendingCall, PendingCalls, drop_calls
from zpptool.wire.link_errors import StaleEpoch

LOST = stage_error("stage 1 was lost")


def test_calls_are_admitted_to_whole_rings_and_to_their_own_epoch_only() -> None:
    calls = PendingCalls()

    def step() -> PendingCall:
        return PendingCall("step", num_answers=1, allowed_s=10, long=False)

    with pytest.raises(StaleEpoch):
        calls.add(step())
    calls.let_in(3)
    number, epoch = calls.add(one := step(), only_in=3)
    assert epoch == 3
    with pytest.raises(StaleEpoch):
        calls.add(step(), only_in=2)
    drop_calls(calls.suspend(), 3, "stage 1 was lost")
    assert "step was dropped with epoch 3: stage 1 was lost" in str(one.future.exception(0))
    assert not calls.settle(number, 0, b"late")
    calls.fail_all(LOST)
    with pytest.raises(ZppError, match="stage 1 was lost"):
        calls.add(step())
    with pytest.raises(ZppError, match="stage 1 was lost"):
        calls.wait_until_whole()
