# SPDX-License-Identifier: Apache-2.0
"""How many connections a server holds, and how long it waits for a request on each."""

from __future__ import annotations

import resource
from dataclasses import dataclass

DEFAULT_CONNECTIONS = 4096
SOCKETS_PER_CONNECTION = 2
"""The client's, and that of its request to a pipeline."""
RESERVED_FILES = 128
"""Descriptors that are left for everything else: processes, logs, the terminal."""


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of one server; times are in seconds.

    Attributes:
        connections: the most connections at one time.
        per_address: the most connections of one client address.
        header_bytes: the most bytes of a request line with its headers.
        header_s: from the beginning of a connection, or from the first byte of a later request on it, to the end of the
            headers; for TLS also the most that the handshake may take.
        body_s: from the end of the headers to the end of the body.
        keep_alive_s: how long a connection may be idle after a response.
    """

    connections: int = DEFAULT_CONNECTIONS
    per_address: int = DEFAULT_CONNECTIONS // 2
    header_bytes: int = 64 << 10
    header_s: float = 10.0
    body_s: float = 120.0
    keep_alive_s: int = 5


def open_file_limit() -> int:
    """The most files and sockets that this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def affordable_connections(wanted: int, files: int) -> int:
    """How many connections a process can hold.

    Args:
        wanted: the most that it should hold.
        files: the most files that it may have open.
    """
    return max(1, min(wanted, (files - min(RESERVED_FILES, files // 2)) // SOCKETS_PER_CONNECTION))


def scaled_down(per_address: int, wanted: int, affordable: int) -> int:
    """The limit of one address where fewer connections are affordable than wanted: the same share, at least 1."""
    return max(1, min(per_address, affordable, per_address * affordable // wanted))
