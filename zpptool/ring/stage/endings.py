# SPDX-License-Identifier: Apache-2.0
"""The reasons for which a stage's main loop ends."""

from __future__ import annotations

import copy

from zpptool.errors import ExitCode, ZppError
from zpptool.ring.messages import Leave
from zpptool.wire.link import LinkError


class RingOver(ZppError):
    """The head has stopped the run, so what the main loop waits for will not arrive."""


class RingBroken(LinkError):
    """The head has stopped the run because the pipeline is broken."""


class AskedToLeave(ZppError):
    """The head has asked this stage to leave, which it does between two calls, in any epoch.

    Attributes:
        moved_to: the address of the process that takes this place; empty where this stage restarts.
        partition: the layer ranges after the restart; empty if they do not change.
    """

    def __init__(self, leave: Leave) -> None:
        what = f"its place moves to {leave.moved_to}, and it ends" if leave.moved_to else "it leaves, and comes again"
        super().__init__(f"{what}: {leave.why}", exit_code=ExitCode.OK if leave.moved_to else ExitCode.AGAIN)
        self.moved_to = leave.moved_to
        self.partition = leave.partition


def with_hint(fault: ZppError, hint: str) -> ZppError:
    """A copy of a fault, of the same class, with another hint; the original is its cause."""
    hinted = copy.copy(fault)
    hinted.hint = hint
    hinted.__cause__ = fault
    return hinted
