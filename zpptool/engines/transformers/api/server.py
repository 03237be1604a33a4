# SPDX-License-Identifier: Apache-2.0
"""An HTTP server on a thread of its own, so that the main thread is left to whatever ends the process.

The port is bound when the object is made, before anything is loaded, and answers only once it is started: nobody waits
for weights to learn that a port is taken.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette

from zpptool.errors import address_error
from zpptool.net.http_server import bound_socket

STOP_GRACE_S = 2
"""How long answers that are under way may take when the server is stopped."""


class HttpServer:
    """A server of one application. Use it as a context manager: leaving it stops the server.

    Args:
        host: the name or address to listen at.
        port: the port.

    Raises:
        ZppError: (ADDRESS) they cannot be used.
    """

    def __init__(self, host: str, port: int) -> None:
        self._endpoint = f"{host}:{port}"
        self._socket = bound_socket("the API", host, port, "--api-port")
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._fault: OSError | None = None

    def start(self, app: Starlette) -> None:
        """Begin to answer."""
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=STOP_GRACE_S, lifespan="off", ws="none"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, args=(self._server,), name="api", daemon=True)
        self._thread.start()

    def interrupt(self) -> None:
        """Let `wait` return; may be called from any thread."""
        self._over.set()

    def wait(self) -> None:
        """Block until `interrupt`.

        Raises:
            ZppError: (ADDRESS) the server cannot listen.
        """
        self._over.wait()
        if self._fault is not None:
            raise address_error(f"the API cannot listen at {self._endpoint}: {self._fault.strerror}")

    def stop(self) -> None:
        """Take no more requests, give those under way a moment, and end."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(STOP_GRACE_S + 1)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, server: uvicorn.Server) -> None:
        try:
            server.run(sockets=[self._socket])
        except OSError as cause:  # another process bound the port too, and was the first to listen
            self._fault = cause
        finally:
            self._over.set()
