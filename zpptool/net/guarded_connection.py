# SPDX-License-Identifier: Apache-2.0
"""A connection of uvicorn's HTTP server with limits that uvicorn lacks: deadlines for the handshake of TLS, for the
headers and for the body of a request, and a register that bounds how many connections there are.

The class wraps uvicorn's protocol for HTTP/1.1, which parses and answers. What is parsed becomes known through the
ASGI application: `ConnectionWatch` finds the connection in the state of each request's scope.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from zpptool.net.connection_limits import ConnectionLimits
from zpptool.net.connection_register import ConnectionRegister

CONNECTION = "zpptool.connection"
"""The key of a request's connection in the state of its ASGI scope."""
REST_S = 5.0
"""How long the rest of a body is read and dropped after its request was refused, so that the client gets the response;
then the connection is closed."""


class GuardedConnection(asyncio.Protocol):
    """One connection.

    Attributes:
        address: of the client, without its port.

    Args:
        limits: of each connection.
        register: of the server's connections.
        tls: for TLS; None for plain HTTP.
        make_inner: makes uvicorn's protocol, given further state for the scopes of its requests.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        register: ConnectionRegister,
        tls: ssl.SSLContext | None,
        make_inner: Callable[[dict[str, Any]], asyncio.Protocol],
    ) -> None:
        self.address = ""
        self._limits, self._register, self._tls = limits, register, tls
        self._inner = make_inner({CONNECTION: self})
        self._transport: asyncio.Transport | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._connected = False
        self._early: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._idle = True
        self._response_begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection; start TLS, or pass it on."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) else ""
        if not self._register.admit(self):
            transport.abort()
            return
        self._close_after(self._limits.header_s, "the headers of the request")
        if self._tls is None:
            self._connect(transport)
        else:
            self._handshake = asyncio.ensure_future(self._start_tls(transport, self._tls))

    def data_received(self, data: bytes) -> None:
        """Pass on what the client sends; the first bytes of a request start the deadline for its headers."""
        if not self._connected:
            self._early.append(data)
            return
        if self._idle and self._timer is None:
            self._close_after(self._limits.header_s, "the headers of the request")
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on that the client sends no more."""
        return self._inner.eof_received() if self._connected else None

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the register."""
        self._cancel_timer()
        self._register.remove(self)
        if self._handshake is not None:
            self._handshake.cancel()
        if self._connected:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on that the client reads too slowly."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client reads again."""
        self._inner.resume_writing()

    def headers_received(self, *, has_body: bool) -> None:
        """Called when a request's headers are complete."""
        self._idle, self._response_begun = False, False
        if has_body:
            self._close_after(self._limits.body_s, "the body of the request")
        else:
            self.body_received()

    def body_received(self) -> None:
        """Called when a request is complete: from now on only its response takes time."""
        self._cancel_timer()
        self._register.request_complete(self)

    def response_begun(self) -> None:
        """Called when a response begins; after that no error can be sent."""
        self._response_begun = True

    def response_ended(self, *, body_is_complete: bool) -> None:
        """Called when a response is complete. The unread rest of a request's body is read for a while."""
        self._register.request_answered(self)
        self._cancel_timer()
        self._idle = body_is_complete
        if not body_is_complete:
            self._close_after(REST_S, "")

    def give_way(self) -> None:
        """Close at once, for another connection."""
        self._cancel_timer()
        if self._transport is not None:
            self._transport.abort()

    async def _start_tls(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(
                transport, self, context, server_side=True, ssl_handshake_timeout=self._limits.header_s
            )
        except (OSError, ssl.SSLError):
            transport.abort()
            self._cancel_timer()
            self._register.remove(self)
            return
        if secured is not None and not secured.is_closing():
            self._transport = secured
            self._connect(secured)

    def _connect(self, transport: asyncio.Transport) -> None:
        self._connected = True
        self._inner.connection_made(transport)
        early, self._early = self._early, []
        for data in early:
            self._inner.data_received(data)

    def _close_after(self, seconds: float, awaited: str) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._close_late, seconds, awaited)

    def _close_late(self, seconds: float, awaited: str) -> None:
        self._timer = None
        if self._transport is None or self._transport.is_closing():
            return
        if self._connected and awaited and not self._response_begun:
            self._transport.write(timeout_response(seconds, awaited))
            self._transport.close()
        else:
            self._transport.abort()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def timeout_response(seconds: float, awaited: str) -> bytes:
    """A response with status 408.

    Args:
        seconds: the deadline that has passed.
        awaited: what did not arrive.
    """
    message = f"{awaited} did not arrive in {seconds:g} s, which is this server's limit"
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": "request_timeout"}
    body = json.dumps({"error": error}).encode()
    head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return b"HTTP/1.1 408 Request Timeout\r\n" + head.encode() + body


def guarded_protocol(
    limits: ConnectionLimits, register: ConnectionRegister, tls: ssl.SSLContext | None
) -> type[asyncio.Protocol]:
    """The class that uvicorn's option `http` takes.

    Args:
        limits: of each connection.
        register: of the server's connections.
        tls: for TLS; None for plain HTTP.
    """

    class Connection(GuardedConnection):
        def __init__(self, config: Config, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
            super().__init__(
                limits, register, tls, lambda more: H11Protocol(config, server_state, {**app_state, **more}, _loop)
            )

    return Connection
