# SPDX-License-Identifier: Apache-2.0
"""Watches the stages of a script while the script does something else."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from zpptool.process.group import POLL_S


class StageWatchdog:
    """Checks the stages on a thread of its own until it is stopped: a context manager.

    While the engine core waits for the stages to load, a stage that has ended and is not restarted would leave it
    waiting forever, so the watchdog terminates it. The engine core may be started after the stage has ended. Once the
    stages have loaded, the ring itself reports a loss.

    Args:
        check: restarts the stages that are to be restarted; returns whether a stage has ended for good.

    Attributes:
        has_lost: whether a stage has ended for good.
    """

    def __init__(self, check: Callable[[], bool]) -> None:
        self.has_lost = False
        self._check = check
        self._engine_core_waits = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stage-watchdog", daemon=True)

    def loaded(self) -> None:
        """The stages have loaded: the engine core does not wait for them any more."""
        self._engine_core_waits = False

    def stop(self) -> None:
        """Stop watching; no stage is restarted afterwards."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL_S):
            self.has_lost = self._check()
            if self.has_lost and self._engine_core_waits:
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
