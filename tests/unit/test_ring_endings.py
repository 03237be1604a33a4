# SPDX-License-Identifier: Apache-2.0
"""The reasons for which a stage ends."""

from __future__ import annotations

from zpptool.errors import ExitCode
from zpptool.ring.messages import Leave
from zpptool.ring.stage.endings import AskedToLeave, with_hint
from zpptool.wire.link import PeerLost


def test_a_hint_is_added_to_a_copy_of_the_same_class() -> None:
    fault = PeerLost("stage 1 has lost stage 0", "See its log.", stage=1, peer="stage 0", endpoint="ipc:///x", epoch=3)
    hinted = with_hint(fault, "It began elsewhere.")
    assert type(hinted) is PeerLost
    assert (hinted.message, hinted.hint, hinted.exit_code) == (fault.message, "It began elsewhere.", ExitCode.STAGE)
    assert (hinted.stage, hinted.peer, hinted.endpoint, hinted.epoch) == (1, "stage 0", "ipc:///x", 3)
    assert hinted.__cause__ is fault
    assert fault.hint == "See its log."


def test_a_stage_restarts_unless_its_place_moves() -> None:
    assert AskedToLeave(Leave((), "a test")).exit_code is ExitCode.AGAIN
    moved = AskedToLeave(Leave((), "a test", moved_to="tcp://10.0.0.3:15551"))
    assert (moved.exit_code, moved.moved_to) == (ExitCode.OK, "tcp://10.0.0.3:15551")
