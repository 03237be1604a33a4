# SPDX-License-Identifier: Apache-2.0
"""Whether planned addresses can be bound on this machine: each is bound for a moment, and a process in the way is
named."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from zpptool.config.endpoints import StageEndpoints, tcp_endpoint
from zpptool.net.addresses import DEFAULT_HOST


@dataclass(frozen=True)
class PortFault:
    """An address of this machine that cannot be bound.

    Attributes:
        address: the endpoint.
        message: the address and the reason.
        pid: the process that listens there; None where the system does not show it.
        process: that process's name.
    """

    address: str
    message: str
    pid: int | None = None
    process: str | None = None


def probe_ports(endpoints: Sequence[StageEndpoints], api_port: int | None = None) -> list[PortFault]:
    """Bind every planned address that belongs to this machine, all at the same time, and release them.

    Hosts that do not resolve to an address of this machine are skipped: they are for a probe there.

    Args:
        endpoints: every stage's addresses.
        api_port: of the API beside stage 0; None to leave it out.
    """
    addresses = [(endpoint.host, endpoint.bind) for endpoint in endpoints]
    if api_port is not None:
        addresses.append((endpoints[0].host, tcp_endpoint(endpoints[0].host, api_port)))
    own = _own_addresses()
    faults: list[PortFault] = []
    with ExitStack() as held:
        for host, address in addresses:
            if address.startswith("ipc://"):
                faults += _probe_ipc(address)
                continue
            local = [ip for ip in _resolve(host) if ip in own]
            port = urlsplit(address).port
            if local and port is not None:
                faults += _probe_tcp(held, address, local[0], port)
    return faults


def probed_hosts(endpoints: Sequence[StageEndpoints]) -> list[str]:
    """The hosts of the plan that are this machine, in the order of the stages."""
    own = _own_addresses()
    hosts = dict.fromkeys(endpoint.host for endpoint in endpoints)
    return [host for host in hosts if any(ip in own for ip in _resolve(host))]


def _own_addresses() -> set[str]:
    import psutil

    return {address.address for nic in psutil.net_if_addrs().values() for address in nic}


def _resolve(host: str) -> list[str]:
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []


def _probe_tcp(held: ExitStack, address: str, ip: str, port: int) -> Iterator[PortFault]:
    """Listen as ZeroMQ will, with SO_REUSEADDR, so that a port in TIME_WAIT counts as free."""
    probe = held.enter_context(socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM))
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((ip, port))
        probe.listen()
    except OSError as cause:
        yield _fault(address, cause.strerror or str(cause), _listener_pid("tcp", port))


def _probe_ipc(address: str) -> Iterator[PortFault]:
    """ZeroMQ removes a socket file that is in its way, so a file counts as taken only while a process listens on it."""
    path = Path(address.removeprefix("ipc://"))
    if path.parent.exists() and not os.access(path.parent, os.W_OK | os.X_OK):
        yield _fault(address, f"{path.parent} cannot be written to", None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            yield _fault(address, "a process listens on it", _listener_pid("unix", str(path)))


def _fault(address: str, reason: str, pid: int | None) -> PortFault:
    import psutil

    message = f"{address} cannot be bound: {reason}"
    if pid is None:
        return PortFault(address, message)
    try:
        process = psutil.Process(pid).name()
    except psutil.Error:
        return PortFault(address, f"{message} (held by process {pid})", pid)
    return PortFault(address, f"{message} (held by process {pid}, {process})", pid, process)


def _listener_pid(kind: Literal["tcp", "unix"], at: int | str) -> int | None:
    """The process that listens at a port or a path; None where the system does not show it (another user's)."""
    import psutil

    try:
        connections = psutil.net_connections(kind=kind)
    except psutil.AccessDenied:
        return None
    for connection in connections:
        listens = connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)  # a unix socket has no status
        if connection.pid and listens and getattr(connection.laddr, "port", connection.laddr) == at:
            return connection.pid
    return None


def free_port() -> int:
    """A TCP port of loopback that no process uses at this moment."""
    with socket.socket() as probe:
        probe.bind((DEFAULT_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
