# SPDX-License-Identifier: Apache-2.0
"""Reads the status that a head reports of its ring, again and again, so that readers of the status never wait.

A thread does it. Its last result is kept, or none while there is no head. A head that is there and too busy to answer
in time is taken to be as it was.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from zpptool.admin.status_client import read_status
from zpptool.errors import ExitCode, ZppError
from zpptool.ring.status import BEAT_S, RingStatus


class StatusPoller:
    """Polls one head's status socket until it is stopped.

    Args:
        path: the socket; it need not exist yet.

    Attributes:
        status: the head's last status; None while there is no head.
        fault: what has broken the ring, as the head has reported it; empty for nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stopped = threading.Event()
        self._answered_at = time.monotonic()
        self.status: RingStatus | None = None
        self.fault = ""
        threading.Thread(target=self._run, name="status-poller", daemon=True).start()

    @property
    def unanswered_s(self) -> float:
        """Seconds for which a head that is there has not answered."""
        return time.monotonic() - self._answered_at

    def stop(self) -> None:
        """Stop polling; the status becomes None."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.status = read_status(self._path)
                self._answered_at = time.monotonic()
                self.fault = self.status.fault or self.fault
            except ZppError as cause:
                if cause.exit_code is ExitCode.ADDRESS:
                    self.status = None
                    self._answered_at = time.monotonic()
            self._stopped.wait(BEAT_S)
        self.status = None
