# SPDX-License-Identifier: Apache-2.0
"""The head's log of set-up calls (load the weights, lay out the cache, add an adapter), which it repeats in each epoch.

The invariant: every stage executes the same set-up calls in the same order, each once per process. A stage that has
done a call before answers from its `SetupHistory`; a restarted one executes it.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from zpptool.errors import ZppError
from zpptool.ring.head.epochs import Event, Failed, Ready
from zpptool.ring.head.pending_calls import PendingCall, PendingCalls
from zpptool.wire.link_errors import StaleEpoch

Ask = Callable[[PendingCall, bytes, int, int], Future[list[bytes]]]
"""Sends a call to all stages: the call, its payload, its index among the set-up calls, the epoch."""


@dataclass(slots=True, eq=False)
class _Setup:
    """One set-up call; its future is settled by the first answer in any epoch."""

    index: int
    call: PendingCall
    payload: bytes
    future: Future[list[bytes]] = field(default_factory=Future)


class SetupLog:
    """All set-up calls of a run.

    Args:
        calls: the table that each of them is entered into, each time that it is sent.
        ask: sends one.
        post: called with `Ready` when every stage of an epoch is set up, or with `Failed` when one cannot be. It must
            not wait.
    """

    def __init__(self, calls: PendingCalls, ask: Ask, post: Callable[[Event], None]) -> None:
        self._calls = calls
        self._ask = ask
        self._post = post
        self._lock = threading.RLock()
        self._log: list[_Setup] = []
        self._epoch: int | None = None
        self._missing: set[int] = set()

    @property
    def count(self) -> int:
        """How many set-up calls there are."""
        return len(self._log)

    def add(self, call: PendingCall, payload: bytes) -> Future[list[bytes]]:
        """Add a call; it is sent now, or as soon as stages are admitted."""
        with self._lock:
            setup = _Setup(len(self._log), call, payload)
            setup.future.set_running_or_notify_cancel()
            fault = self._calls.fault
            if fault is not None:
                setup.future.set_exception(fault)
                return setup.future
            self._log.append(setup)
            if self._epoch is not None:
                self._send(setup, self._epoch)
        return setup.future

    def amend(self, method: str, payload: bytes) -> None:
        """Replace the payload of a call from now on. Stages that have done it with another payload have to restart."""
        with self._lock:
            for setup in self._log:
                if setup.call.method == method:
                    setup.payload = payload

    def replay(self, epoch: int) -> None:
        """Send every call to the stages that were admitted to this epoch."""
        with self._lock:
            self._epoch = epoch
            self._missing = {setup.index for setup in self._log}
            for setup in self._log:
                self._send(setup, epoch)
            if not self._log:
                self._post(Ready(epoch))

    def suspend(self) -> None:
        """The epoch has ended: calls without an answer are sent again in the next one."""
        with self._lock:
            self._epoch = None

    def fail_all(self, fault: ZppError) -> bool:
        """Fail what is open, here and in the table of calls, and all that follows; False if that was done before."""
        first = self._calls.fail_all(fault)
        with self._lock:
            for setup in self._log:
                if not setup.future.done():
                    setup.future.set_exception(fault)
        return first

    def _send(self, setup: _Setup, epoch: int) -> None:
        call = dataclasses.replace(setup.call, future=Future(), payloads={})
        answers = self._ask(call, setup.payload, setup.index, epoch)
        answers.add_done_callback(lambda done: self._take(setup, epoch, done))

    def _take(self, setup: _Setup, epoch: int, done: Future[list[bytes]]) -> None:
        """A call was answered in an epoch. A fault that was its first answer too does not fail the epoch."""
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
                self._post(Failed(fault))
                return
            self._missing.discard(setup.index)
            if self._epoch == epoch and not self._missing and self._calls.whole is None:
                self._post(Ready(epoch))
