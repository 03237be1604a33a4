# SPDX-License-Identifier: Apache-2.0
"""What a head tells of its ring, asked again and again, so that whoever looks at it never waits.

The asking is done by a thread of its own. What it was told last is what there is: nothing, as long as there is no head.
One that is there and too busy to answer in time is taken to fare as before.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from zpptool.admin.status_client import read_status
from zpptool.errors import ExitCode, ZppError
from zpptool.ring.status import BEAT_S, RingStatus


class StatusPoller:
    """Looks at one head's status socket until it is told to stop.

    Args:
        path: the socket; it need not be there yet.

    Attributes:
        told: what the head told last; None as long as there is none.
        fault: what has broken the ring, as the head said; empty for nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over = threading.Event()
        self._answered_at = time.monotonic()
        self.told: RingStatus | None = None
        self.fault = ""
        threading.Thread(target=self._look, name="ring-watch", daemon=True).start()

    @property
    def unanswered_s(self) -> float:
        """For how long a head that is there has not answered."""
        return time.monotonic() - self._answered_at

    def stop(self) -> None:
        """Look no more; nothing is known from now on."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.is_set():
            try:
                self.told = read_status(self._path)
                self._answered_at = time.monotonic()
                self.fault = self.told.fault or self.fault
            except ZppError as unheard:
                if unheard.exit_code is ExitCode.ADDRESS:
                    self.told = None
                    self._answered_at = time.monotonic()
            self._over.wait(BEAT_S)
        self.told = None
