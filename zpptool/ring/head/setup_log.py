# SPDX-License-Identifier: Apache-2.0
"""The calls that set a stage up (load, lay out the cache, take in an adapter), on both sides of the ring.

The invariant: every stage has done the same set-up calls in the same order, each once in its life. The head repeats all
of them in every epoch. A stage that has done one answers from memory; a newborn one does it.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from zpptool.errors import ZppError
from zpptool.ring.head.epochs import Event, Failed, Ready
from zpptool.ring.head.pending_calls import OpenCall, OpenCalls
from zpptool.wire.link_errors import StaleEpoch

Ask = Callable[[OpenCall, bytes, int, int], Future[list[bytes]]]
"""Asks all stages: the call, its payload, its place among the set-up calls, the epoch."""


@dataclass(slots=True, eq=False)
class _SetUp:
    """One of them, at the head; the future is settled by the first answer there is."""

    index: int
    call: OpenCall
    payload: bytes
    future: Future[list[bytes]] = field(default_factory=Future)


class SetUps:
    """All of them, at the head.

    Args:
        calls: where they are let in, each time that they are asked.
        ask: sends one.
        happen: is told when every stage of an epoch is set up, or cannot be. It must not wait.
    """

    def __init__(self, calls: OpenCalls, ask: Ask, happen: Callable[[Event], None]) -> None:
        self._calls = calls
        self._ask = ask
        self._happen = happen
        self._lock = threading.RLock()
        self._log: list[_SetUp] = []
        self._admitted: int | None = None
        self._missing: set[int] = set()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._log)

    def add(self, call: OpenCall, payload: bytes) -> Future[list[bytes]]:
        """One more; it is asked now or as soon as stages are admitted."""
        with self._lock:
            setup = _SetUp(len(self._log), call, payload)
            setup.future.set_running_or_notify_cancel()
            fault = self._calls.fault
            if fault is not None:
                setup.future.set_exception(fault)
                return setup.future
            self._log.append(setup)
            if self._admitted is not None:
                self._send(setup, self._admitted)
        return setup.future

    def amend(self, method: str, payload: bytes) -> None:
        """Have this asked in the place of what was: of stages that have not done it, or they have to be born anew."""
        with self._lock:
            for setup in self._log:
                if setup.call.method == method:
                    setup.payload = payload

    def admit(self, epoch: int) -> None:
        """The stages of this epoch are there: have them do, or remember, all that there is."""
        with self._lock:
            self._admitted = epoch
            self._missing = {setup.index for setup in self._log}
            for setup in self._log:
                self._send(setup, epoch)
            if not self._log:
                self._happen(Ready(epoch))

    def shut(self) -> None:
        """An epoch has ended: what was not answered is asked again in the next one."""
        with self._lock:
            self._admitted = None

    def break_all(self, fault: ZppError) -> bool:
        """Fail what is open, here and among all calls, and all that is to come; False when that was done already."""
        broke = self._calls.break_all(fault)
        with self._lock:
            for setup in self._log:
                if not setup.future.done():
                    setup.future.set_exception(fault)
        return broke

    def _send(self, setup: _SetUp, epoch: int) -> None:
        again = dataclasses.replace(setup.call, future=Future(), payloads={})
        asked = self._ask(again, setup.payload, setup.index, epoch)
        asked.add_done_callback(lambda done: self._take(setup, epoch, done))

    def _take(self, setup: _SetUp, epoch: int, done: Future[list[bytes]]) -> None:
        """One was answered in an epoch. A fault that a stage had before it was lost is no fault of the next one."""
        fault = done.exception()
        if isinstance(fault, StaleEpoch):
            return
        with self._lock:
            if not setup.future.done():
                if fault is None:
                    setup.future.set_result(done.result())
                else:
                    setup.future.set_exception(fault)
            elif isinstance(fault, ZppError) and setup.future.exception() is None:
                self._happen(Failed(fault))
                return
            self._missing.discard(setup.index)
            if self._admitted == epoch and not self._missing and self._calls.whole is None:
                self._happen(Ready(epoch))






