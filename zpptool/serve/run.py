# SPDX-License-Identifier: Apache-2.0
"""Runs `zpptool serve`: the pipelines' supervisors, the gateway before them, signals and the display.

The main thread only polls and handles signals: each pipeline has a supervisor with a thread of its own, and the gateway
runs on another one. No process that was started here outlives `serve`, however it ends; when `serve` itself is killed,
its child processes notice and end by themselves (`process.child`).
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
from zpptool.log import hide_information
from zpptool.net.http_server import HttpServer, raise_file_limit
from zpptool.places import HEAD
from zpptool.process.signals import stop_requests
from zpptool.serve.backends import Backends
from zpptool.serve.display import Display, display_for, rows_of
from zpptool.serve.launch_plan import PipelineLaunchPlan
from zpptool.serve.serve_options import ServeSettings
from zpptool.supervisor.lifecycle import BACKOFF, Cause, Rules
from zpptool.supervisor.pipeline_processes import PipelineConfig
from zpptool.supervisor.pipeline_view import PipelineView
from zpptool.supervisor.stage_processes import log_directory
from zpptool.supervisor.supervisor import Supervisor

POLL_S = 0.1
_logger = logging.getLogger(__name__)


def serve(settings: ServeSettings, console: Console) -> None:
    """Serve until a stop is requested.

    Args:
        settings: what to serve.
        console: of the command; a quiet one also hides log records below warnings.

    Raises:
        ZppError: (STAGE, or a process's own exit code) no pipeline could be kept up; (ADDRESS) the front's address is
            in use.
        KeyboardInterrupt: a stop was requested, and every process has ended.
    """
    for plan in settings.launch_plans:
        check_engine(plan.specs[0].engine)
    raise_file_limit()
    if console.quiet:
        hide_information()
    display = display_for(console)
    with HttpServer(
        settings.host,
        settings.port,
        settings.certificate,
        settings.key,
        name="the front",
        port_option="--port",
        limits=settings.connections,
    ) as server:
        try:
            with stop_requests() as stops, log_directory(settings.log_dir) as logs:
                ServeApp(settings, display, server, logs).run(stops)
        finally:
            display.close()
    raise KeyboardInterrupt


class ServeApp:
    """One run of `zpptool serve`.

    Args:
        settings: what to serve.
        display: shows the stages.
        server: runs the gateway; must not be started yet.
        logs: the directory of the processes' logs.
    """

    def __init__(self, settings: ServeSettings, display: Display, server: HttpServer, logs: Path) -> None:
        self._settings, self._display, self._server, self._logs = settings, display, server, logs
        count = len(settings.launch_plans)
        self._names = [f"pipeline {number}" if count > 1 else "pipeline" for number in range(count)]
        self._supervisors: list[Supervisor] = []
        self._backends = Backends(settings, self._names, self._supervisors, server)
        self._supervisors += [self._supervisor(number, plan) for number, plan in enumerate(settings.launch_plans)]
        self._ready_generations = [0] * count
        self._began = time.monotonic()

    def run(self, stops: queue.SimpleQueue[int]) -> None:
        """Run until a stop is requested or every pipeline has been given up; end all processes.

        Args:
            stops: gets an item for each stop request.

        Raises:
            ZppError: no pipeline could be kept up.
        """
        self._server.start(self._backends.app)
        _logger.info("the front listens at %s; the logs are in %s", self._server.url, self._logs)
        if not self._supervisors:
            upstreams = ", ".join(address.url for address in self._settings.upstreams)
            self._display.announce(f"serving {upstreams} at {self._server.url}")
        try:
            for supervisor in self._supervisors:
                supervisor.start()
            requested = self._poll_until_over(stops)
        finally:
            self._end_all()
        for supervisor in self._supervisors:
            supervisor.raise_own_fault()
        if not requested:
            raise self._given_up_error()

    def _poll_until_over(self, stops: queue.SimpleQueue[int]) -> bool:
        """Refresh the display and handle stop requests until everything has ended.

        Returns:
            whether a stop was requested.
        """
        stop_count, drain_deadline = 0, 0.0
        while True:
            try:
                stops.get(timeout=POLL_S)
            except queue.Empty:
                pass
            else:
                stop_count += 1
                drain_deadline = time.monotonic() + self._settings.drain_timeout_s
                self._stop(at_once=stop_count > 1)
            self._refresh()
            if self._supervisors:
                if all(supervisor.is_over() for supervisor in self._supervisors):
                    return stop_count > 0
            elif stop_count > 1 or (
                stop_count and (self._backends.in_flight == 0 or time.monotonic() >= drain_deadline)
            ):
                return True
            if not self._server.is_running():
                raise ZppError("the front has ended by itself")

    def _refresh(self) -> None:
        rows = []
        for number, (name, supervisor) in enumerate(zip(self._names, self._supervisors, strict=True)):
            self._backends.refresh(number)
            view = supervisor.view()
            rows += rows_of(name, view)
            if view.is_ready and view.state.generation != self._ready_generations[number]:
                self._ready_generations[number] = view.state.generation
                self._report_ready(name, view)
        self._display.show(rows)

    def _report_ready(self, name: str, view: PipelineView) -> None:
        if view.state.generation > 1:
            _logger.info("%s: ready again, generation %d", name, view.state.generation)
            return
        took_s = time.monotonic() - self._began
        stages = len(view.specs)
        _logger.info("%s: ready after %.1f s, a token has passed through all %d stages", name, took_s, stages)
        model = view.specs[0].served_name or view.specs[0].model
        self._display.announce(f"serving {model} at {self._server.url}")

    def _stop(self, *, at_once: bool) -> None:
        self._backends.drain()
        if at_once:
            _logger.info("ending at once")
        else:
            again = "; Ctrl-C again ends at once" if self._settings.drain_timeout_s else ""
            _logger.info("stopping, %d requests under way%s", self._backends.in_flight, again)
        for supervisor in self._supervisors:
            supervisor.stop()

    def _end_all(self) -> None:
        """Stop every supervisor until each has ended its processes."""
        while alive := [supervisor for supervisor in self._supervisors if not supervisor.is_over()]:
            for supervisor in alive:
                supervisor.stop()
            time.sleep(POLL_S)

    def _given_up_error(self) -> ZppError:
        """The error for pipelines that ended although no stop was requested."""
        states = [supervisor.view().state for supervisor in self._supervisors]
        state = next(state for state in reversed(states) if state.cause is not None)
        assert state.cause is not None
        if state.failures == 1:
            return ZppError(state.cause.message, state.cause.detail, ExitCode(state.cause.exit_code))
        return stage_error(
            f"the pipeline has failed {state.failures} times in a row and is given up: {state.cause.message}",
            state.cause.detail,
        )

    def _supervisor(self, number: int, plan: PipelineLaunchPlan) -> Supervisor:
        settings, name = self._settings, self._names[number]
        rules = Rules(
            places=(HEAD, *range(len(plan.specs))),
            recovery_s=plan.specs[0].recovery_deadline_s,
            backoff=replace(BACKOFF, max_failures=settings.max_restarts + 1),
            start_timeout_s=plan.specs[0].start_timeout_s,
            drain_timeout_s=settings.drain_timeout_s,
        )
        logs = self._logs / name.replace(" ", "-") if len(settings.launch_plans) > 1 else self._logs
        return Supervisor(
            PipelineConfig(name, plan.at, plan.env, logs, rules, settings.spares),
            on_change=lambda _state: self._backends.refresh(number),
            on_report=lambda cause, rest_s: _report_loss(name, cause, rest_s),
            on_drain=lambda: self._backends.call_when_idle(self._supervisors[number].drained),
        )


def _report_loss(name: str, cause: Cause, rest_s: float | None) -> None:
    """Log what a pipeline has lost, with the end of its log; without that where no start follows, because then the
    error that ends the command shows it.

    Args:
        name: of the pipeline.
        cause: what was lost, and why.
        rest_s: seconds until the next start; None where none follows.
    """
    if rest_s is None:
        _logger.info("%s: %s", name, cause.message)
        return
    _logger.info("%s: %s; it is started again in %g s", name, cause.message, rest_s)
    if cause.detail:
        _logger.info("%s", cause.detail)
