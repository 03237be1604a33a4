# SPDX-License-Identifier: Apache-2.0
"""Serving: pipelines kept up, the front before them, signals and the display, until all is over.

The main thread only looks and listens: each pipeline has its supervisor's thread, and the front has one of its own.
Nothing that was started here outlives `serve`, however it ends; what outlives a kill ends by itself (`process.child`).
"""

from __future__ import annotations

import logging
import queue
import time
from dataclasses import replace
from pathlib import Path

from zpptool.console import Console
from zpptool.engines.registry import check_engine
from zpptool.errors import ExitCode, ZppError, stage_error
from zpptool.net.http_server import HttpServer, raise_file_limit
from zpptool.places import HEAD
from zpptool.serve.backends import Backend
from zpptool.serve.display import Display, display_for, rows_of
from zpptool.serve.launch_plan import PipelineLaunchPlan
from zpptool.serve.serve_options import ServeSettings
from zpptool.serve.signals import stop_requests
from zpptool.supervisor import lifecycle as lc
from zpptool.supervisor.pipeline_processes import PipelineConfig
from zpptool.supervisor.pipeline_view import PipelineView
from zpptool.supervisor.stage_processes import log_directory
from zpptool.supervisor.supervisor import Supervisor

LOOK_S = 0.1




def serve(serving: ServeSettings, console: Console) -> None:
    """Serve until told to stop.

    Raises:
        ZppError: (STAGE, or a process's own code) no pipeline could be kept up; (ADDRESS) the front's is taken.
        KeyboardInterrupt: it was told to stop, and everything has ended.
    """
    for order in serving.orders:
        check_engine(order.specs[0].engine)
    raise_file_limit()
    if console.quiet:  # what the supervisors log about spare processes are notes too
        logging.getLogger("zpptool.supervisor").setLevel(logging.WARNING)
    display = display_for(console)
    with HttpServer(
        serving.host, serving.port, serving.certificate, serving.key, name="the front", port_option="--port"
    ) as server:
        try:
            with stop_requests() as stops, log_directory(serving.log_dir) as logs:
                ServeApp(serving, display, server, logs).run(stops)
        finally:
            display.close()
    raise KeyboardInterrupt


class ServeApp:
    """Everything that runs, and what ties it together."""

    def __init__(self, serving: ServeSettings, display: Display, server: HttpServer, logs: Path) -> None:
        self._serving, self._display, self._server, self._logs = serving, display, server, logs
        count = len(serving.orders)
        self._names = [f"pipeline {number}" if count > 1 else "pipeline" for number in range(count)]
        self._supervisors: list[Supervisor] = []
        self._behind = Backend(serving, self._names, self._supervisors, server)
        self._supervisors += [self._supervisor(number, order) for number, order in enumerate(serving.orders)]
        self._ready_generations = [0] * count
        self._began = time.monotonic()

    def run(self, stops: queue.SimpleQueue[int]) -> None:
        """Until all is over.

        Raises:
            ZppError: it is over because nothing could be kept up.
        """
        self._server.start(self._behind.app)
        self._display.say(f"the front listens at {self._server.url}; the logs are in {self._logs}")
        if not self._supervisors:
            self._display.announce(f"serving {', '.join(self._serving.upstreams)} at {self._server.url}")
        try:
            for supervisor in self._supervisors:
                supervisor.start()
            wanted = self._watch(stops)
        finally:
            self._end_all()
        for supervisor in self._supervisors:
            supervisor.raise_own_fault()
        if not wanted:
            raise self._given_up()

    def _watch(self, stops: queue.SimpleQueue[int]) -> bool:
        """Show what goes on, and pass on what the user wants; whether the end was wanted."""
        asked, drained_at = 0, 0.0
        while True:
            try:
                stops.get(timeout=LOOK_S)
            except queue.Empty:
                pass
            else:
                asked += 1
                drained_at = time.monotonic() + self._serving.drain_timeout_s
                self._stop(again=asked > 1)
            self._look()
            if self._supervisors:
                if all(supervisor.is_over() for supervisor in self._supervisors):
                    return asked > 0
            elif asked > 1 or (asked and (self._behind.under_way == 0 or time.monotonic() >= drained_at)):
                return True
            if not self._server.is_running():
                raise ZppError("the front has ended by itself")

    def _look(self) -> None:
        rows = []
        for number, (name, supervisor) in enumerate(zip(self._names, self._supervisors, strict=True)):
            self._behind.refresh(number)
            view = supervisor.view()
            rows += rows_of(name, view)
            if view.is_ready and view.state.generation != self._ready_generations[number]:
                self._ready_generations[number] = view.state.generation
                self._say_ready(name, view)
        self._display.show(rows)

    def _say_ready(self, name: str, view: PipelineView) -> None:
        if view.state.generation > 1:
            self._display.say(f"{name}: ready again, generation {view.state.generation}")
            return
        took = time.monotonic() - self._began
        self._display.say(f"{name}: ready after {took:.1f} s, a token has gone round all {len(view.specs)} stages")
        model = view.specs[0].served_name or view.specs[0].model
        self._display.announce(f"serving {model} at {self._server.url}")

    def _stop(self, *, again: bool) -> None:
        self._behind.drain()
        under_way = self._behind.under_way
        self._display.say(
            "ending at once" if again else f"stopping, {under_way} requests under way; Ctrl-C again ends at once"
        )
        for supervisor in self._supervisors:
            supervisor.stop()

    def _end_all(self) -> None:
        """Whatever has happened: nothing runs afterwards."""
        while alive := [supervisor for supervisor in self._supervisors if not supervisor.is_over()]:
            for supervisor in alive:
                supervisor.stop()
            time.sleep(LOOK_S)

    def _given_up(self) -> ZppError:
        """Why it is over, when nobody wanted that."""
        states = [supervisor.view().state for supervisor in self._supervisors]
        state = next(state for state in reversed(states) if state.cause is not None)
        assert state.cause is not None
        if state.failures == 1:
            return ZppError(state.cause.message, state.cause.detail, ExitCode(state.cause.exit_code))
        return stage_error(
            f"the pipeline has failed {state.failures} times in a row and is given up: {state.cause.message}",
            state.cause.detail,
        )

    def _supervisor(self, number: int, order: PipelineLaunchPlan) -> Supervisor:
        serving, name = self._serving, self._names[number]
        rules = lc.Rules(
            places=(HEAD, *range(len(order.specs))),
            recovery_s=order.specs[0].recovery_deadline_s,
            backoff=replace(lc.BACKOFF, max_failures=serving.max_restarts),
            start_timeout_s=order.specs[0].start_timeout_s,
            drain_timeout_s=serving.drain_timeout_s,
        )
        logs = self._logs / name.replace(" ", "-") if len(serving.orders) > 1 else self._logs
        return Supervisor(
            PipelineConfig(name, order.at, order.env, logs, rules, serving.spares),
            on_change=lambda _state: self._behind.refresh(number),
            on_report=lambda cause, rest_s: self._report(name, cause, rest_s),
            on_drain=lambda: self._behind.tell_when_empty(self._supervisors[number].drained),
        )

    def _report(self, name: str, cause: lc.Cause, rest_s: float | None) -> None:
        """Say what was lost: with the end of its log, unless that is the last word anyhow."""
        if rest_s is None:
            self._display.say(f"{name}: {cause.message}")
            return
        self._display.say(f"{name}: {cause.message}; it is started again in {rest_s:g} s")
        if cause.detail:
            self._display.say(cause.detail)
