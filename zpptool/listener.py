# SPDX-License-Identifier: Apache-2.0
"""The address of an HTTP server, taken before anything else is done: nobody waits for weights to learn that it is taken
already."""

from __future__ import annotations

import socket

from zpptool.errors import address_error


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
