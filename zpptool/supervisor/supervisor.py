# SPDX-License-Identifier: Apache-2.0
"""Keeps one pipeline running: a thread that carries out what `lifecycle.decide` decides, and reports events to it.

Only this thread starts and ends processes. However it ends, they are ended before it: a pipeline that is `ENDED` has
left nothing running. Other threads see it through `Supervisor.view`, which never blocks.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from zpptool.errors import ZppError
from zpptool.supervisor import lifecycle as lc
from zpptool.supervisor.pipeline_processes import PipelineConfig, PipelineProcesses, cause_of
from zpptool.supervisor.pipeline_view import PipelineView

POLL_S = 0.05


class Supervisor:
    """One pipeline and the thread that keeps it running.

    Args:
        config: what the pipeline is started from.
        on_change: called with each new state, in the supervisor's thread.
        on_report: called with what was lost, and the seconds until the restart (None: no restart).
        on_drain: called in the supervisor's thread; it arranges that `drained` is called when no request is in
            progress.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        on_change: Callable[[lc.State], None],
        on_report: Callable[[lc.Cause, float | None], None],
        on_drain: Callable[[], None],
    ) -> None:
        self._rules = config.rules
        self._processes = PipelineProcesses(config)
        self._on_change, self._on_report, self._on_drain = on_change, on_report, on_drain
        self._state = lc.State()
        self._inbox: queue.SimpleQueue[lc.Event | lc.Lost] = queue.SimpleQueue()
        self._alarm_at: float | None = None
        self._stop_requests = 0
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the thread, and with it the pipeline."""
        self._thread.start()

    def stop(self) -> None:
        """End the pipeline after the requests in progress; a second call ends it at once. May be called from any
        thread."""
        self._stop_requests += 1
        self._inbox.put(lc.Event.STOP)

    def drained(self) -> None:
        """Report that no request is in progress. May be called from any thread."""
        self._inbox.put(lc.Event.DRAINED)

    def is_over(self) -> bool:
        """Whether it has ended, or was never started: nothing of the pipeline runs."""
        return not self._thread.is_alive()

    def raise_own_fault(self) -> None:
        """Raise the exception that has ended the supervisor itself, if one has."""
        if self._fault is not None:
            raise self._fault

    def view(self) -> PipelineView:
        """The pipeline now. May be called from any thread."""
        state, processes = self._state, self._processes
        restarts = max(state.generation - 1, 0)
        return PipelineView(
            state, processes.specs, processes.view(), restarts, processes.ring, processes.ready_spares
        )  # fmt: skip

    def _run(self) -> None:
        try:
            self._handle(lc.Event.BEGIN)
            wait_s = 0.0
            while self._state.phase is not lc.Phase.ENDED:
                event = self._next_event(wait_s)
                wait_s = POLL_S if event is None else 0.0
                if event is not None:
                    self._handle(event)
        except BaseException as fault:  # raised again by `raise_own_fault`; nothing may be left running
            self._fault = fault
        finally:
            self._processes.close()

    def _next_event(self, wait_s: float) -> lc.Event | lc.Lost | None:
        """What has happened; None for nothing in `wait_s` seconds.

        After an event the caller passes 0, since more may have followed from it.
        """
        phase = self._state.phase
        try:
            return self._inbox.get(timeout=wait_s)
        except queue.Empty:
            self._processes.maintain_spares(ready=phase is lc.Phase.READY)
        if phase in (lc.Phase.STARTING, lc.Phase.READY, lc.Phase.DRAINING):
            self._processes.kill_hung()
        if self._processes.any_ended():
            if phase in (lc.Phase.BROKEN, lc.Phase.DRAINING):
                return self._processes.loss(self._state, hurry=lambda: self._stop_requests > 0)
            if phase in (lc.Phase.STARTING, lc.Phase.READY):
                return lc.Event.BREAK
        if self._alarm_at is not None and time.monotonic() >= self._alarm_at:
            self._alarm_at = None
            return lc.Event.ALARM
        if phase is lc.Phase.STARTING and self._processes.is_whole():
            return lc.Event.WHOLE
        return None

    def _handle(self, event: lc.Event | lc.Lost) -> None:
        state, actions = lc.decide(self._state, event, self._rules)
        if state.phase is not self._state.phase:
            self._alarm_at = None
        changed, self._state = state != self._state, state
        if changed:
            self._on_change(state)
        for action in actions:
            self._perform(action)

    def _perform(self, action: lc.Action) -> None:
        match action:
            case lc.Start(places=places):
                self._start(places)
            case lc.End(places=places, at_once=at_once):
                self._processes.end(places, at_once=at_once, hurry=lambda: self._stop_requests > 1)
                self._inbox.put(lc.Event.CLEARED)
            case lc.SetAlarm(after_s=after_s):
                self._alarm_at = time.monotonic() + after_s
            case lc.Report(cause=cause, delay_s=delay_s):
                self._on_report(cause, delay_s)
            case lc.Drain():
                self._on_drain()

    def _start(self, places: tuple[int, ...]) -> None:
        """Start processes. A failure to start one is reported as a loss."""
        try:
            self._processes.start(places, self._state.generation)
        except (OSError, ZppError) as fault:
            self._inbox.put(lc.Lost(cause_of(fault, f"the pipeline cannot be started: {fault}")))
