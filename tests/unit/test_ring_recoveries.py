# SPDX-License-Identifier: Apache-2.0
"""The head's record of losses: its summaries, and when it gives up."""

from __future__ import annotations

from zpptool.errors import stage_error
from zpptool.ring.head.recoveries import MOST_IN_A_ROW, Recoveries
from zpptool.ring.messages import StageFacts

LOST = stage_error("stage 1 was lost")


def facts(stage: int, pid: int) -> StageFacts:
    return StageFacts(stage=stage, host="here", pid=pid, num_stages=2, layers=(0, 1), agreed={})


def test_a_recovery_has_one_summary_however_many_losses_it_took() -> None:
    recoveries = Recoveries(10.0)
    assert recoveries.whole(1, 0) == ""
    before = (facts(0, 1), facts(1, 2))
    recoveries.lost(LOST)
    recoveries.lost(stage_error("stage 0 was lost"))
    recoveries.roll_answered(before, (facts(0, 1), facts(1, 3)))
    summary = recoveries.whole(3, 4)
    assert "in epoch 3" in summary
    assert "It began with this: stage 1 was lost. Losses that followed on the way: 1." in summary
    assert "New: stage 1 (here, pid 3)." in summary
    assert "(4 set-up calls)" in summary
    assert recoveries.count == 1


def test_losses_in_a_row_without_an_answer_in_between_end_the_run() -> None:
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
    recoveries.call_answered(50)
    recoveries.lost(LOST)
    assert recoveries.too_late(()) is None
