# SPDX-License-Identifier: Apache-2.0
"""A stage's record of lost neighbours. Any thread may use it.

The invariant: of each epoch of each run, only the first loss is reported. After it, messages of that epoch are useless.
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from zpptool.errors import ZppError


class RunEpoch(NamedTuple):
    """A run and one of its epochs."""

    run_id: str
    epoch: int


class Losses:
    """The losses that one stage has noticed.

    Attributes:
        cause: why this stage waits for another epoch; None if it does not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost: RunEpoch | None = None
        self._since = 0.0
        self.cause: ZppError | None = None

    def record(self, epoch: RunEpoch, cause: ZppError) -> bool:
        """Record a loss in this epoch; False if one is recorded already."""
        with self._lock:
            if self._lost == epoch:
                return False
            if self.cause is None:
                self._since = time.monotonic()
            self._lost, self.cause = epoch, cause
            return True

    def is_lost(self, epoch: RunEpoch) -> bool:
        """Whether something was lost in this epoch."""
        return self._lost == epoch

    def epoch_began(self) -> None:
        """Another epoch has begun at this stage."""
        with self._lock:
            self.cause = None

    @property
    def waited_s(self) -> float:
        """How long this stage has waited for another epoch, in seconds; 0 if it does not wait."""
        return time.monotonic() - self._since if self.cause is not None else 0.0
