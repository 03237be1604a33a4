# SPDX-License-Identifier: Apache-2.0
"""Who binds what, and who connects to it: the addresses of a pipeline's links, and a probe that binds them for real.

The ring is head -> stage 0 -> ... -> stage N-1 -> head. The sender of a link binds, the receiver connects: stage i
(not the last) binds its forward port, the last stage binds the return port, stage i > 0 connects to stage i-1, and the
head, beside stage 0, connects to the return port. Planned ports are between 1 and 65535, no two stages of one host
share one, and planning touches no network: only `probe_ports` does.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from zpptool.errors import address_error, usage_error
from zpptool.file_names import holds_control
from zpptool.net.addresses import DEFAULT_HOST, is_ip_address, is_loopback, machine_of

DEFAULT_BASE_PORT = 15550
DEFAULT_API_PORT = 8000
HIGHEST_PORT = 65535
HIGHEST_PRIVILEGED_PORT = 1023
# sun_path holds 108 bytes on Linux, one of them the closing NUL (unix(7)).
LONGEST_IPC_PATH = 107

Transport = Literal["tcp", "ipc"]
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})")
_SCOPE = re.compile(r"\A[^%]+(%[A-Za-z0-9._-]{1,64})?\Z")
"""An IPv6 address may end in the name of an interface, and Python takes any text for one."""
_PORT = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True)
class StageEndpoints:
    """The two addresses of one stage, each `tcp://host:port` or `ipc://path`.

    Attributes:
        stage: the stage's index.
        host: the machine it runs on.
        bind: where the stage sends from: its forward port, or the return port when it is the last.
        connect: what its receiver connects to: the bind address of the stage before. For stage 0 that is the last
            stage's, the return link; the head beside stage 0 reads it.
    """

    stage: int
    host: str
    bind: str
    connect: str


@dataclass(frozen=True)
class FirewallRule:
    """One port to open. `peer` is the host that connects, or None for the clients of the API."""

    host: str
    port: int
    peer: str | None

    def __str__(self) -> str:
        return f"open tcp {self.port} on host {self.host} for {f'host {self.peer}' if self.peer else 'its clients'}"


@dataclass(frozen=True)
class PortFault:
    """An address of this machine that cannot be bound; `pid` and `process` where the system tells who holds it."""

    address: str
    message: str
    pid: int | None = None
    process: str | None = None


def plan_endpoints(
    num_stages: int,
    base_port: int = DEFAULT_BASE_PORT,
    hosts: Sequence[str] | None = None,
    transport: Transport = "tcp",
    ipc_dir: Path | None = None,
) -> tuple[StageEndpoints, ...]:
    """The addresses of every stage, in order.

    Stages that share a host bind `base_port + i`; a stage alone on its host binds `base_port`, the same on each such
    host, as a Kubernetes Service likes it. The return port is `base_port + num_stages` in both cases.

    Args:
        hosts: one name or address for all stages, or one a stage; `127.0.0.1` if None.
        transport: `ipc` puts sockets, numbered as the ports would be, into `ipc_dir`; for one host only.
        ipc_dir: where the sockets of `ipc` lie; `default_ipc_dir()` if None.

    Raises:
        ZppError: (USAGE) the hosts do not fit the stages or the transport; (ADDRESS) a port or a host cannot be.
    """
    if num_stages < 1:
        raise usage_error(f"a pipeline has at least one stage, not {num_stages}")
    return_port = base_port + num_stages
    if base_port < 1 or return_port > HIGHEST_PORT:
        raise address_error(
            f"ports {base_port} to {return_port} are needed, and a port lies between 1 and {HIGHEST_PORT}",
            f"choose a base port from 1 to {HIGHEST_PORT - num_stages}",
        )
    stage_hosts = _stage_hosts(num_stages, hosts or [DEFAULT_HOST])
    stages_of = Counter(map(machine_of, stage_hosts))
    if transport == "ipc" and len(stages_of) > 1:
        raise usage_error("ipc links stages on one host, and several hosts are given", "use --transport tcp")

    binds = []
    for stage, host in enumerate(stage_hosts):
        alone = stages_of[machine_of(host)] == 1
        last = stage == num_stages - 1
        port = return_port if last else base_port if alone else base_port + stage
        binds.append(_address(transport, host, port, ipc_dir))
    return tuple(
        StageEndpoints(stage, host, bind=binds[stage], connect=binds[stage - 1])
        for stage, host in enumerate(stage_hosts)
    )


def default_ipc_dir() -> Path:
    """The user's own directory for ipc sockets: under XDG_RUNTIME_DIR where there is one, else under the temp dir."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime, "zpptool") if runtime else Path(tempfile.gettempdir(), f"zpptool-{os.getuid()}")


def open_ports(endpoints: Sequence[StageEndpoints], api_port: int) -> dict[str, list[int]]:
    """The TCP ports that listen on each host, in ascending order; the API listens beside stage 0.

    Raises:
        ZppError: (ADDRESS) the API port is no port, or a stage of its host binds it.
    """
    ports: dict[str, list[int]] = {endpoint.host: [] for endpoint in endpoints}
    for endpoint in endpoints:
        if (port := urlsplit(endpoint.bind).port) is not None:
            ports[endpoint.host].append(port)
    api_host = endpoints[0].host
    if not 1 <= api_port <= HIGHEST_PORT:
        raise address_error(f"API port {api_port} does not lie between 1 and {HIGHEST_PORT}")
    for endpoint in endpoints:
        if machine_of(endpoint.host) == machine_of(api_host) and urlsplit(endpoint.bind).port == api_port:
            raise address_error(
                f"the API port {api_port} is also the port that stage {endpoint.stage} binds on host {api_host}",
                "choose another --api-port or --base-port",
            )
    ports[api_host].append(api_port)
    return {host: sorted(numbers) for host, numbers in ports.items()}


def firewall_rules(endpoints: Sequence[StageEndpoints], api_port: int) -> list[FirewallRule]:
    """What must be let through: every link that leaves its host, and the API unless it listens on loopback only."""
    rules = []
    for sender, receiver in zip(endpoints, [*endpoints[1:], endpoints[0]], strict=True):
        port = urlsplit(sender.bind).port
        if port is not None and machine_of(sender.host) != machine_of(receiver.host):
            rules.append(FirewallRule(sender.host, port, receiver.host))
    if not is_loopback(endpoints[0].host):
        rules.append(FirewallRule(endpoints[0].host, api_port, None))
    return rules


def stage_flags(endpoint: StageEndpoints, num_stages: int, api_port: int) -> list[str]:
    """The words of `zpptool run-stage` that give this stage its place and its addresses.

    A stage listens on 127.0.0.1 unless told otherwise, so a host that is not loopback is named.
    """
    words = ["--stage-idx", str(endpoint.stage), "--total-stages", str(num_stages)]
    if endpoint.bind.startswith("ipc://"):
        words += ["--bind", endpoint.bind, "--connect", endpoint.connect]
    else:
        previous = "--prev-stage-addr" if endpoint.stage == 0 else "--prev-stage-service-addr"
        words += ["--local-bind-port", str(urlsplit(endpoint.bind).port), previous, urlsplit(endpoint.connect).netloc]
    local = is_loopback(endpoint.host)
    if not local and not endpoint.bind.startswith("ipc://"):
        words += ["--bind-host", endpoint.host]
    words += keys_flags(endpoint)
    if endpoint.stage == 0:
        words += ["--port", str(api_port)] if local else ["--host", endpoint.host, "--port", str(api_port)]
    return words


def keys_flags(endpoint: StageEndpoints) -> list[str]:
    """The words of `zpptool run-stage` that name a stage's key file, as `zpptool keys generate` writes it; none where
    no link of the stage leaves the machine."""
    hosts = [urlsplit(link).hostname for link in (endpoint.bind, endpoint.connect)]
    if all(host is None or is_loopback(host) for host in hosts):
        return []
    return ["--keys", f"keys/stage_{endpoint.stage}.keys"]


def probe_ports(endpoints: Sequence[StageEndpoints], api_port: int | None = None) -> list[PortFault]:
    """Bind every planned address that belongs to this machine, all at the same time, and let go of them.

    Hosts that do not resolve to an address of this machine are passed over: they are for a probe there.
    """
    addresses = [(endpoint.host, endpoint.bind) for endpoint in endpoints]
    if api_port is not None:
        addresses.append((endpoints[0].host, _address("tcp", endpoints[0].host, api_port, None)))
    own = _own_addresses()
    faults: list[PortFault] = []
    with ExitStack() as held:
        for host, address in addresses:
            if address.startswith("ipc://"):
                faults += _probe_ipc(address)
                continue
            local = [found for found in _resolve(host) if found in own]
            port = urlsplit(address).port
            if local and port is not None:
                faults += _probe_tcp(held, address, local[0], port)
    return faults


def probed_hosts(endpoints: Sequence[StageEndpoints]) -> list[str]:
    """The hosts of the plan that are this machine, in the order of the stages."""
    own = _own_addresses()
    hosts = dict.fromkeys(endpoint.host for endpoint in endpoints)
    return [host for host in hosts if any(found in own for found in _resolve(host))]


def _stage_hosts(num_stages: int, hosts: Sequence[str]) -> list[str]:
    if len(hosts) not in (1, num_stages):
        raise usage_error(
            f"{len(hosts)} hosts are given for {num_stages} stages",
            f"give one host for all stages, or {num_stages}, one a stage, in order",
        )
    for host in hosts:
        if host in ("0.0.0.0", "::", "*"):
            raise address_error(f"{host!r} is every address of a machine: nobody can connect to it", "name the host")
        if not is_host(host):
            raise address_error(f"{host!r} is not a host name or an IP address", "give it without scheme and port")
    return list(hosts) * (num_stages if len(hosts) == 1 else 1)


def _address(transport: Transport, host: str, port: int, ipc_dir: Path | None) -> str:
    if transport == "tcp":
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    path = (ipc_dir or default_ipc_dir()) / f"zpp-{port}"
    if len(os.fsencode(path)) > LONGEST_IPC_PATH:
        raise address_error(
            f"{path} is too long for a socket: a path may have {LONGEST_IPC_PATH} bytes", "give a shorter --ipc-dir"
        )
    return f"ipc://{path}"






def is_host(text: str) -> bool:
    """Whether `text` is a host name or an IP address, and nothing that means more in a path or on a command line."""
    return _HOST_NAME.fullmatch(text) is not None or (is_ip_address(text) and _SCOPE.search(text) is not None)


def is_link(text: str) -> bool:
    """Whether `text` is a link's address: `tcp://HOST:PORT` or `ipc://PATH`."""
    transport, _, rest = text.partition("://")
    if transport == "ipc":
        return bool(rest) and not holds_control(rest)
    host, _, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return transport == "tcp" and is_host(host) and _PORT.fullmatch(port) is not None and 1 <= int(port) <= HIGHEST_PORT




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
    """ZeroMQ removes a socket file that is in its way, so a file counts as taken only while somebody listens on it."""
    path = Path(address.removeprefix("ipc://"))
    if path.parent.exists() and not os.access(path.parent, os.W_OK | os.X_OK):
        yield _fault(address, f"{path.parent} cannot be written to", None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            yield _fault(address, "somebody listens on it", _listener_pid("unix", str(path)))


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


def _listener_pid(kind: Literal["tcp", "unix"], place: int | str) -> int | None:
    """Who listens at a port or a path; None where the system does not tell (another user's process, for one)."""
    import psutil

    try:
        connections = psutil.net_connections(kind=kind)
    except psutil.AccessDenied:
        return None
    for connection in connections:
        listens = connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)  # a unix socket has no status
        if connection.pid and listens and getattr(connection.laddr, "port", connection.laddr) == place:
            return connection.pid
    return None


def free_port() -> int:
    """A TCP port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
