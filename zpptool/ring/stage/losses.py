# SPDX-License-Identifier: Apache-2.0
"""What a stage knows of the loss of others: pure bookkeeping, asked from several threads.

The invariant: of each epoch of each run the first loss is told, once; until the next welcome nothing of that epoch is
of use to anybody.
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from zpptool.errors import ZppError


class RunEpoch(NamedTuple):
    """A run and an epoch of it."""

    run_id: str
    epoch: int


class Losses:
    """The losses that one stage has met."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost: RunEpoch | None = None
        self._since = 0.0
        self.cause: ZppError | None = None

    def meet(self, standing: RunEpoch, cause: ZppError) -> bool:
        """Something was lost in this epoch; False when that is known."""
        with self._lock:
            if self._lost == standing:
                return False
            if self.cause is None:
                self._since = time.monotonic()
            self._lost, self.cause = standing, cause
            return True

    def is_lost(self, standing: RunEpoch) -> bool:
        """Whether something was lost in this epoch."""
        return self._lost == standing

    def begun_anew(self) -> None:
        """Another epoch has begun here."""
        with self._lock:
            self.cause = None

    @property
    def waited_s(self) -> float:
        """How long this stage has waited for another epoch; 0 where it does not wait."""
        return time.monotonic() - self._since if self.cause is not None else 0.0
