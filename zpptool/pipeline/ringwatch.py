# SPDX-License-Identifier: Apache-2.0
"""What a head tells of its ring, asked again and again, so that whoever looks at it never waits.

The asking is done by a thread of its own. What it was told last is what there is: nothing, as long as no head answers.
"""

from __future__ import annotations

import threading
from pathlib import Path

from zpptool.errors import ZppError
from zpptool.pipeline.ring.status import BEAT_S, RingStatus, read_status


class RingWatch:
    """Looks at one head's status socket until it is told to stop.

    Args:
        path: the socket; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over = threading.Event()
        self.told: RingStatus | None = None
        threading.Thread(target=self._look, name="ring-watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more; nothing is known from now on."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.is_set():
            try:
                told = read_status(self._path)
            except ZppError:
                told = None
            self.told = None if self._over.is_set() else told
            self._over.wait(BEAT_S)
        self.told = None
