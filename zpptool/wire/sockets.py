# SPDX-License-Identifier: Apache-2.0
"""Opening one ZeroMQ socket on one endpoint, with every option that a link relies on.

The invariant: a socket that `make_socket` returns has bounded queues, a bounded linger, a bounded frame size and
keepalives; after `attach` it is bound or connecting. Every refusal is a `ZppError` with exit code `ADDRESS` and a next
step.
"""

from __future__ import annotations

import errno
import re
import socket as net
import stat
from pathlib import Path
from typing import TypeAlias

import zmq

from zpptool.errors import ZppError, address_error
from zpptool.socket_directories import LONGEST_SOCKET_PATH

Socket: TypeAlias = "zmq.Socket[bytes]"
Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"

LINGER_S = 2.0
"""How long a closing socket goes on sending accepted messages."""
ZAP_DOMAIN = b"zpptool"

_OPTIONS: dict[int, int] = {
    zmq.LINGER: int(LINGER_S * 1000),
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 1000,
    zmq.CONNECT_TIMEOUT: 3000,
    zmq.HANDSHAKE_IVL: 10_000,
    # The kernel's check for a peer whose host is down: 5 s + 4 x 3 s of silence, or as long without acknowledgement.
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,
    zmq.TCP_KEEPALIVE_INTVL: 3,
    zmq.TCP_KEEPALIVE_CNT: 4,
    zmq.TCP_MAXRT: 17_000,
}
_HEARTBEATS: dict[int, int] = {
    zmq.HEARTBEAT_IVL: 2000,
    # An answer waits behind the frame that is being sent, so a frame may take no longer than this: 64 MiB at 36 Mbit/s.
    zmq.HEARTBEAT_TIMEOUT: 15_000,
    zmq.HEARTBEAT_TTL: 15_000,
}
"""Only the end that connects sends them, and the other one ends a connection on which they cease. libzmq 4.3.5 aborts
the process when its own heartbeat is due on a connection that has ended while its queue was full, and any peer can
cause that at the end that binds."""

_TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:/\s]+):(?P<port>\d{1,5}|\*)")
_ANY_PORT = ("*", "0")


def make_socket(context: Context, kind: int, *, to_send: int, to_receive: int, max_frame_bytes: int) -> Socket:
    """A socket with the options of a link and no address yet.

    Args:
        context: creates the socket.
        kind: `zmq.ROUTER` or `zmq.DEALER`.
        to_send: messages that may be queued to be sent.
        to_receive: messages that may be queued to be received.
        max_frame_bytes: a peer that announces a longer frame is disconnected before memory is taken for it.
    """
    made = context.socket(kind)
    for option, value in _OPTIONS.items():
        made.setsockopt(option, value)
    if kind == zmq.ROUTER:
        # A message for a peer that is gone is refused instead of dropped.
        made.setsockopt(zmq.ROUTER_MANDATORY, 1)
    else:
        for option, value in _HEARTBEATS.items():
            made.setsockopt(option, value)
    # With an authentication domain, even without a ZAP server, libzmq refuses ZMTP 1 and 2. Without one, it takes any
    # bytes that do not begin with 0xFF (an HTTP probe, a TLS hello) for a ZMTP 1 peer, reports nothing to the monitor,
    # and sends it messages.
    made.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    made.setsockopt(zmq.SNDHWM, to_send)
    made.setsockopt(zmq.RCVHWM, to_receive)
    made.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
    return made


def attach(socket: Socket, endpoint: str, *, bind: bool) -> str:
    """Bind the socket to the endpoint, or begin to connect it. Connecting succeeds before the other side exists.

    Args:
        socket: as `make_socket` returned it.
        endpoint: `tcp://host:port` (port `*` binds any free one), or `ipc:///path`.
        bind: whether to bind.

    Returns:
        the endpoint, with the port that was chosen for `*`.

    Raises:
        ZppError: the endpoint cannot be used (exit 5).
    """
    if check_endpoint(endpoint, bind=bind) == "tcp":
        socket.setsockopt(zmq.IPV6, int(_needs_ipv6(endpoint)))
    try:
        if not bind:
            socket.connect(endpoint)
            return endpoint
        socket.bind(endpoint)
        return socket.getsockopt_string(zmq.LAST_ENDPOINT)
    except zmq.ZMQError as error:
        raise _address_fault(error, endpoint, bind=bind) from error


def check_endpoint(endpoint: str, *, bind: bool) -> str:
    """The transport of a well-formed endpoint, `tcp` or `ipc`.

    Raises:
        ZppError: another transport, a bad port, a path that is too long, in no directory, or in use (exit 5).
    """
    if endpoint.startswith("ipc://"):
        _check_ipc(endpoint.removeprefix("ipc://"), endpoint, bind=bind)
        return "ipc"
    parts = _TCP.fullmatch(endpoint)
    if parts is None:
        raise address_error(
            f"{endpoint!r} is not an endpoint.",
            "Write tcp://HOST:PORT, for example tcp://127.0.0.1:15550, or ipc:///PATH.",
        )
    port = parts["port"]
    if port in _ANY_PORT and not bind:
        raise address_error(
            f"{endpoint} names no port to connect to.", "Only the side that binds may leave the port open."
        )
    if port != "*" and int(port) > 65535:
        raise address_error(f"Port {port} in {endpoint} is above 65535.")
    if parts["host"] == "*" and not bind:
        raise address_error(f"{endpoint} names no host to connect to.", "Name the host that binds it.")
    return "tcp"


def tcp_host(endpoint: str) -> str:
    """The host of a tcp endpoint, an IPv6 address without brackets."""
    parts = _TCP.fullmatch(endpoint)
    assert parts is not None
    return parts["host"].strip("[]")


def _check_ipc(path: str, endpoint: str, *, bind: bool) -> None:
    if not path or path == "*":
        raise address_error(f"{endpoint!r} names no path.", "Write ipc:///PATH, for example ipc:///tmp/zpp/stage0.")
    if path.startswith("@"):  # an abstract name of Linux is in no directory
        return
    size = len(path.encode())
    if size > LONGEST_SOCKET_PATH:
        raise address_error(
            f"The path of {endpoint} has {size} bytes, a Unix socket's has at most {LONGEST_SOCKET_PATH}.",
            "Choose a shorter directory.",
        )
    file = Path(path)
    if not file.parent.is_dir():
        raise address_error(f"{endpoint}: {file.parent} is not a directory.", "Make it first, with mode 0700.")
    if bind and file.exists():
        _check_abandoned(file, endpoint)


def _check_abandoned(file: Path, endpoint: str) -> None:
    """libzmq deletes the file at the path that it binds: let it delete only a socket that no process serves."""
    if not stat.S_ISSOCK(file.stat().st_mode):
        raise address_error(f"{endpoint} cannot be bound: {file} is a file, not a socket.", "Choose another path.")
    with net.socket(net.AF_UNIX, net.SOCK_STREAM) as probe:
        try:
            probe.connect(str(file))
        except ConnectionRefusedError:
            return
        except OSError as error:
            raise address_error(f"{endpoint} cannot be bound: {error.strerror}.") from error
    raise address_error(f"{endpoint} is in use by another process.", "Stop it, or choose another path.")


def _needs_ipv6(endpoint: str) -> bool:
    """Whether the host of a tcp endpoint has only IPv6 addresses. Resolves names, so that wrong ones are refused."""
    parts = _TCP.fullmatch(endpoint)
    assert parts is not None
    host = parts["host"]
    if host.startswith("["):
        return True
    if host == "*" or _is_interface(host):
        return False
    try:
        found = net.getaddrinfo(host, None, type=net.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise address_error(
            f"The host {host!r} of {endpoint} cannot be resolved ({getattr(error, 'strerror', None) or error}).",
            "Check its spelling and this machine's name service, or give its IP address.",
        ) from error
    return all(family == net.AF_INET6 for family, *_ in found)


def _is_interface(host: str) -> bool:
    return any(host == name for _, name in net.if_nameindex())


def _address_fault(error: zmq.ZMQError, endpoint: str, *, bind: bool) -> ZppError:
    """The error for what the system has reported."""
    verb = "bound" if bind else "connected to"
    match error.errno:
        case errno.EADDRINUSE:
            return address_error(
                f"{endpoint} is in use by another process.",
                "Does this stage run already? Stop it, or choose other ports (`zpptool plan-ports --check`).",
            )
        case errno.EADDRNOTAVAIL | errno.ENODEV:
            return address_error(
                f"{endpoint} cannot be {verb}: this machine has no such address.",
                "Bind 127.0.0.1, 0.0.0.0 or one of its own.",
            )
        case errno.EACCES | errno.EPERM:
            return address_error(f"{endpoint} cannot be {verb}: permission denied.", "Ports below 1024 are privileged.")
        case _:
            return address_error(f"{endpoint} cannot be {verb}: {error.strerror}.")
