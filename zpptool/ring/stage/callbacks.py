# SPDX-License-Identifier: Apache-2.0
"""What a stage's process has called when something happens in the ring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zpptool.errors import ZppError


def _ignore_end(_why: ZppError) -> None:
    pass


def _ignore_stuck() -> None:
    pass


def _ignore_address(_address: str) -> None:
    pass


@dataclass(slots=True)
class StageCallbacks:
    """Set before the stage joins the ring.

    Attributes:
        on_over: called once with the reason, on the receiving thread, when the run is over.
        on_stuck: called on the heartbeat's thread when the main loop hangs at a step of an epoch that is over.
        on_moved: called with the new address of the stage before, on the receiving thread.
    """

    on_over: Callable[[ZppError], None] = _ignore_end
    on_stuck: Callable[[], None] = _ignore_stuck
    on_moved: Callable[[str], None] = _ignore_address
