# SPDX-License-Identifier: Apache-2.0
"""An HTTP server on an event loop in a thread of its own; the main thread is left to signals and the terminal.

The address is bound, and certificate and key are read, when the object is made. So a port that is taken is reported
before any process is started or any weights are loaded.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from zpptool.errors import ZppError, address_error
from zpptool.net.addresses import url_host
from zpptool.net.certificate_reload import reload_certificates
from zpptool.net.connection_limits import ConnectionLimits, affordable_connections, open_file_limit, scaled_down
from zpptool.net.connection_register import ConnectionRegister
from zpptool.net.connection_watch import ConnectionWatch
from zpptool.net.guarded_connection import guarded_protocol
from zpptool.net.tls import server_tls

STOP_GRACE_S = 2
"""Seconds that responses in progress may take when the server is stopped."""
STARTED_POLL_S = 0.01
MAX_OPEN_FILES = 65536
"""Two sockets for every request in progress, with a margin."""
BACKLOG = 2048


class HttpServer:
    """A server of one application. Use it as a context manager: leaving it stops the server.

    Attributes:
        url: where it listens; the base of its URLs.
        loop: the event loop of the server's thread.

    Args:
        host: the name or address to listen at.
        port: the port; 0 for any that is free.
        certificate: a PEM file; None for plain HTTP.
        key: the PEM file of its key.
        name: what the server is called in errors.
        port_option: the command-line option that chooses another port.
        limits: of connections; None for a server whose clients are trusted, as those of a head are.

    Raises:
        ZppError: (ADDRESS) host and port cannot be used; (USAGE) certificate or key cannot.
    """

    def __init__(
        self,
        host: str,
        port: int,
        certificate: Path | None = None,
        key: Path | None = None,
        *,
        name: str = "the API",
        port_option: str = "--api-port",
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._tls = server_tls(certificate, key)
        self._files = (certificate, key)
        self._limits = limits or (ConnectionLimits() if self._tls is not None else None)
        self._name, self._port_option = name, port_option
        self._socket = _bound_socket(name, host, port, port_option)
        self.url = f"{'https' if self._tls else 'http'}://{url_host(host)}:{self._socket.getsockname()[1]}"
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._over = threading.Event()
        self._fault: BaseException | None = None
        self.loop = asyncio.new_event_loop()

    def start(self, app: Starlette | Callable[[], ASGIApp]) -> None:
        """Start the thread, and return when the server accepts connections.

        Args:
            app: the application, or a function that makes it, which is called in the server's thread and loop.

        Raises:
            ZppError: (ADDRESS) another process listens at the address.
        """
        make_app: Callable[[], ASGIApp] = (lambda: app) if isinstance(app, Starlette) else app
        self._thread = threading.Thread(target=self._run, args=(make_app,), name="http-server", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._fault is not None:
            raise self._ended_by(self._fault)

    def is_running(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def interrupt(self) -> None:
        """Make `wait` return. May be called from any thread."""
        self._over.set()

    def wait(self) -> None:
        """Block until `interrupt` is called or the server has ended.

        Raises:
            ZppError: (ADDRESS) the server has failed.
        """
        self._over.wait()
        if self._fault is not None:
            raise self._ended_by(self._fault)

    def stop(self) -> None:
        """Accept no more connections, give responses in progress `STOP_GRACE_S` seconds, and end."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(STOP_GRACE_S + 2)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, make_app: Callable[[], ASGIApp]) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve(make_app))
        except BaseException as fault:  # such as an address at which another process listens by now
            self._fault = fault
        finally:
            self._started.set()
            self._over.set()
            self.loop.close()

    async def _serve(self, make_app: Callable[[], ASGIApp]) -> None:
        config = self._config(make_app())
        self._server = uvicorn.Server(config)
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        certificate, key = self._files
        if self._tls is not None and certificate is not None and key is not None:
            renewal = asyncio.ensure_future(reload_certificates(self._tls, certificate, key))
            serving.add_done_callback(lambda _done: renewal.cancel())
        while not self._server.started and not serving.done():
            await asyncio.sleep(STARTED_POLL_S)
        if self._server.started:
            self._started.set()
        await serving

    def _config(self, app: ASGIApp) -> uvicorn.Config:
        """uvicorn's settings. A guarded server accepts no more connections at once than it may hold, because each has
        a descriptor from the moment it is accepted."""
        limits = self._limits
        common = partial(
            uvicorn.Config,
            log_level="error",  # bytes that are no HTTP request are not worth a line
            access_log=False,
            lifespan="on",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_GRACE_S,
        )
        if limits is None:
            return common(app, backlog=BACKLOG)
        connections = affordable_connections(limits.connections, open_file_limit())
        register = ConnectionRegister(connections, scaled_down(limits.per_address, limits.connections, connections))
        return common(
            ConnectionWatch(app),
            http=guarded_protocol(limits, register, self._tls),
            h11_max_incomplete_event_size=limits.header_bytes,
            timeout_keep_alive=limits.keep_alive_s,
            backlog=min(BACKLOG, connections),
        )

    def _ended_by(self, fault: BaseException) -> ZppError:
        return address_error(
            f"{self._name} cannot listen at {self.url}: {fault}", f"Choose another port with {self._port_option}."
        )


def raise_file_limit() -> None:
    """Raise the limit of open files of this process and its children as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _bound_socket(name: str, host: str, port: int, port_option: str) -> socket.socket:
    """A socket that is bound and does not listen yet; the arguments are those of `HttpServer`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as cause:
        fault = f"{name} cannot listen at {host}:{port}: {cause.strerror}"
        raise address_error(fault, f"Choose another port with {port_option}.") from cause
    return bound
