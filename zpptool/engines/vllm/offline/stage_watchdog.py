# SPDX-License-Identifier: Apache-2.0
"""The stages of a script, looked after while the script does something else."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from zpptool.process.group import POLL_S


class StageWatchdog:
    """Looks after the stages on a thread of its own, until it is stopped: a context manager.

    As long as the engine core waits for them, it ends that one when a stage has gone for good, for it would wait in
    vain. It may not have been started yet when that happens. Afterwards the ring tells of a loss by itself.

    Args:
        look: starts again what is to be started again, and tells whether a stage has gone for good.

    Attributes:
        has_lost: whether one has.
    """

    def __init__(self, look: Callable[[], bool]) -> None:
        self.has_lost = False
        self._look = look
        self._waited_for = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="stage-keeper", daemon=True)

    def stands(self) -> None:
        """Tell that the engine core does not wait for the stages any more."""
        self._waited_for = False

    def stop(self) -> None:
        """Start no stage any more."""
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._over.wait(POLL_S):
            self.has_lost = self._look()
            if self.has_lost and self._waited_for:
                for process in multiprocessing.active_children():
                    if process.name.startswith("EngineCore"):
                        process.terminate()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()
