# SPDX-License-Identifier: Apache-2.0
"""A pipeline that exists for one batch: `zpptool serve` in threads of this process, for as long as the batch lasts."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from zpptool.console import Console
from zpptool.engines.registry import check_engine
from zpptool.errors import stage_error
from zpptool.net.http_server import HttpServer, raise_file_limit
from zpptool.serve.display import LineDisplay
from zpptool.serve.run import ServeApp
from zpptool.serve.serve_options import ServeSettings
from zpptool.supervisor.stage_processes import log_directory

_POLL_S = 0.1
_HEALTH_S = 5.0


class _QuietDisplay(LineDisplay):
    """Logs the phases of stages, and does not announce the front: a batch's result is its summary."""

    def announce(self, text: str) -> None:
        """Print nothing."""


@dataclass(frozen=True)
class OwnPipeline:
    """A pipeline that runs.

    Attributes:
        url: of its front.
        check: raises the error with which the pipeline has ended, if it has.
    """

    url: str
    check: Callable[[], None]

    def wait_until_ready(self, is_stopped: Callable[[], bool]) -> None:
        """Return once a token has passed through the whole ring, or a stop was requested.

        Raises:
            ZppError: the pipeline could not be started.
        """
        with httpx.Client(trust_env=False, timeout=_HEALTH_S) as client:
            while not is_stopped():
                self.check()
                try:
                    if client.get(f"{self.url}/health").status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(_POLL_S)


@contextmanager
def own_pipeline(settings: ServeSettings, console: Console) -> Iterator[OwnPipeline]:
    """Start pipelines and a front before them; all of their processes have ended when the block is left.

    Args:
        settings: what to serve.
        console: of the command.

    Raises:
        ZppError: an engine is missing, or the front's port is in use.
    """
    for plan in settings.launch_plans:
        check_engine(plan.specs[0].engine)
    raise_file_limit()
    faults: list[BaseException] = []
    stops: queue.SimpleQueue[int] = queue.SimpleQueue()
    with (
        HttpServer(settings.host, settings.port, name="the front", port_option="--port") as server,
        log_directory(settings.log_dir) as logs,
    ):
        app = ServeApp(settings, _QuietDisplay(console), server, logs)

        def serve() -> None:
            try:
                app.run(stops)
            except BaseException as fault:
                faults.append(fault)

        thread = threading.Thread(target=serve, name="pipeline", daemon=True)

        def check() -> None:
            if not thread.is_alive():
                raise faults[0] if faults else stage_error("the pipeline has ended by itself")

        thread.start()
        try:
            yield OwnPipeline(server.url, check)
        finally:
            stops.put(signal.SIGTERM)
            thread.join()
