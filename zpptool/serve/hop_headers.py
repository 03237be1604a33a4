# SPDX-License-Identifier: Apache-2.0
"""Which headers of a request or a response the gateway forwards, and what it changes in those of a response.

A response never names the address of the server behind the gateway: a client that followed it would bypass API keys,
TLS and limits, or would be sent to its own loopback address.
"""

from __future__ import annotations

from collections.abc import Set
from urllib.parse import urlsplit, urlunsplit

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
"""Headers that concern one connection only (RFC 9110, 7.6.1)."""
OWN = frozenset({b"date", b"server"})
"""Headers of a response that the gateway's server writes itself."""
CROSS_ORIGIN = b"access-control-"
"""The beginning of the headers with which a server admits pages of other origins; the gateway decides that itself."""
ADDRESSES = frozenset({b"location", b"content-location"})
EVENT_STREAM = b"text/event-stream"
NO_BUFFERING = (b"x-accel-buffering", b"no")
"""Has nginx, and proxies that follow its convention, pass a stream on event by event."""


def end_to_end(headers: Headers, dropped: Set[bytes] = frozenset()) -> Headers:
    """The headers that are forwarded: without those that concern one connection, which are the fixed ones and all that
    a `Connection` header names.

    Args:
        headers: of a request or a response.
        dropped: names of further headers to leave out, in lower case.
    """
    named = {
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    }
    left_out = HOP_BY_HOP | named | dropped
    return [(name, value) for name, value in headers if name.lower() not in left_out]


def response_headers(headers: Headers, upstream_url: str) -> Headers:
    """The headers of an upstream's response as the client gets them.

    Args:
        headers: of the upstream's response.
        upstream_url: the base URL of the upstream, which the client must not see.
    """
    forwarded = [
        (name, _without_authority(value, upstream_url) if name.lower() in ADDRESSES else value)
        for name, value in end_to_end(headers, OWN)
        if not name.lower().startswith(CROSS_ORIGIN)
    ]
    names = {name.lower() for name, _ in forwarded}
    if is_event_stream(forwarded) and NO_BUFFERING[0] not in names:
        forwarded.append(NO_BUFFERING)
    return forwarded


def is_event_stream(headers: Headers) -> bool:
    """Whether the headers announce server-sent events."""
    return any(name.lower() == b"content-type" and value.lower().startswith(EVENT_STREAM) for name, value in headers)


def _without_authority(address: bytes, upstream_url: str) -> bytes:
    """An address as a path of this server if it is an address of the upstream; unchanged otherwise."""
    try:
        parts, upstream = urlsplit(address.decode("latin-1")), urlsplit(upstream_url)
        same = (parts.hostname, parts.port) == (upstream.hostname, upstream.port)
    except ValueError:
        return address
    if not parts.netloc or not same:
        return address
    path = "/" + parts.path.lstrip("/")
    return urlunsplit(("", "", path, parts.query, parts.fragment)).encode("latin-1")
