# SPDX-License-Identifier: Apache-2.0
"""The front's HTTP server: an event loop on a thread of its own; the main thread is left to signals and terminal.

The address is bound, and certificate and key are read, when the object is made: before anything is started.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette

from zpptool.errors import address_error, usage_error
from zpptool.regular_file import open_regular

STOP_GRACE_S = 2
WANTED_FILES = 65536
"""Two sockets for every request in flight, and some room."""
BACKLOG = 2048


class FrontServer:
    """A server of one application. Use it as a context manager: leaving it stops the server.

    Args:
        host: the name or address to listen at.
        port: the port; 0 for any that is free.
        certificate: a PEM file; None speaks plain HTTP.
        key: the PEM file of its key.

    Raises:
        ZppError: (ADDRESS) host and port cannot be used; (USAGE) certificate or key cannot.
    """

    def __init__(self, host: str, port: int, certificate: Path | None = None, key: Path | None = None) -> None:
        _check_certificate(certificate, key)
        self._tls = {"ssl_certfile": certificate, "ssl_keyfile": key} if certificate else {}
        self._socket = bound_socket("the front", host, port, "--port")
        self._host = host
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._up = threading.Event()
        self._fault: BaseException | None = None
        self.loop = asyncio.new_event_loop()

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self._socket.getsockname()[1]}"

    def start(self, make_app: Callable[[], Starlette]) -> None:
        """Begin to answer.

        Args:
            make_app: makes the application, on the server's thread and loop.

        Raises:
            ZppError: (ADDRESS) another process listens there.
        """
        self._thread = threading.Thread(target=self._run, args=(make_app,), name="front", daemon=True)
        self._thread.start()
        self._up.wait()
        if self._fault is not None:
            raise address_error(f"the front cannot listen at {self.url}: {self._fault}", "Choose another with --port.")

    def is_running(self) -> bool:
        """Whether it answers."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Take no more connections, give what is under way a moment, and end."""
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

    def _run(self, make_app: Callable[[], Starlette]) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve(make_app))
        except BaseException as fault:  # a listener that another process has taken, for one
            self._fault = fault
        finally:
            self._up.set()
            self.loop.close()

    async def _serve(self, make_app: Callable[[], Starlette]) -> None:
        config = uvicorn.Config(
            make_app(),
            log_level="error",  # a stranger's bytes that are no HTTP are no news
            access_log=False,
            lifespan="on",
            ws="none",
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=STOP_GRACE_S,
            **self._tls,  # type: ignore[arg-type]
        )
        self._server = uvicorn.Server(config)
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.01)
        if self._server.started:
            self._up.set()
        await serving


def raise_file_limit() -> None:
    """Allow this process, and those that it starts, as many open files as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _check_certificate(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise usage_error("TLS needs both a certificate and its key", "Give --ssl-certfile and --ssl-keyfile.")
    if certificate is None or key is None:
        return
    try:
        for file in (certificate, key):
            open_regular(file).close()
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError) as cause:
        raise usage_error(f"{certificate} and {key} cannot be used: {cause}", "Both are PEM files.") from cause


def bound_socket(server: str, host: str, port: int, option: str) -> socket.socket:
    """A socket that is bound and does not listen yet.

    Args:
        server: whose it is, for people.
        host: the name or address to listen at.
        port: its port; 0 for any that is free.
        option: of the command line, that chooses another port.

    Raises:
        ZppError: (ADDRESS) host and port cannot be used.
    """
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
        fault = f"{server} cannot listen at {host}:{port}: {cause.strerror}"
        raise address_error(fault, f"Choose another with {option}.") from cause
    return bound
