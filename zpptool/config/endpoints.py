# SPDX-License-Identifier: Apache-2.0
"""The addresses of a pipeline's links: who binds which, who connects to it, and what follows for flags and firewalls.

The ring is head -> stage 0 -> ... -> stage N-1 -> head. The sender of a link binds, the receiver connects: stage i
(not the last) binds its forward port, the last stage binds the return port, stage i > 0 connects to stage i-1, and the
head, beside stage 0, connects to the return port. Planned ports are between 1 and 65535, no two stages of one host
share one. Nothing here uses the network; `port_probe` does.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from zpptool.errors import address_error, usage_error
from zpptool.file_names import holds_control
from zpptool.net.addresses import DEFAULT_HOST, is_ip_address, is_loopback, machine_of
from zpptool.socket_directories import LONGEST_PARENT, LONGEST_SOCKET_PATH, parents, usable_parent

DEFAULT_BASE_PORT = 15550
DEFAULT_API_PORT = 8000
HIGHEST_PORT = 65535
HIGHEST_PRIVILEGED_PORT = 1023

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
        bind: what its sending link binds: its forward port, or the return port on the last stage.
        connect: what its receiving link connects to: the bind address of the stage before. For stage 0 that is the
            last stage's, the return link, which the head beside stage 0 connects to.
    """

    stage: int
    host: str
    bind: str
    connect: str


@dataclass(frozen=True)
class FirewallRule:
    """One port to open.

    Attributes:
        host: where it listens.
        port: its number.
        peer: the host that connects; None for the clients of the API.
    """

    host: str
    port: int
    peer: str | None

    def __str__(self) -> str:
        return f"open tcp {self.port} on host {self.host} for {f'host {self.peer}' if self.peer else 'its clients'}"


def plan_endpoints(
    num_stages: int,
    base_port: int = DEFAULT_BASE_PORT,
    hosts: Sequence[str] | None = None,
    transport: Transport = "tcp",
    ipc_dir: Path | None = None,
) -> tuple[StageEndpoints, ...]:
    """The addresses of every stage, in order.

    Stages that share a host bind `base_port + i`; a stage alone on its host binds `base_port`, the same on each such
    host, so that every Kubernetes Service has the same port. The return port is `base_port + num_stages` in both cases.

    Args:
        num_stages: how many stages.
        base_port: the first forward port.
        hosts: one name or address for all stages, or one a stage; `127.0.0.1` if None.
        transport: `ipc` puts socket files, numbered as the ports would be, into `ipc_dir`; for one host only.
        ipc_dir: the directory of the socket files; `default_ipc_dir()` if None.

    Raises:
        ZppError: (USAGE) the hosts do not fit the stages or the transport; (ADDRESS) a port or a host is not valid.
    """
    if num_stages < 1:
        raise usage_error(f"a pipeline has at least one stage, not {num_stages}")
    return_port = base_port + num_stages
    if base_port < 1 or return_port > HIGHEST_PORT:
        raise address_error(
            f"ports {base_port} to {return_port} are needed, and a port lies between 1 and {HIGHEST_PORT}",
            f"choose a base port from 1 to {HIGHEST_PORT - num_stages}" if num_stages < HIGHEST_PORT else None,
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
    """The user's own directory for ipc sockets: under XDG_RUNTIME_DIR, or else under the temp directory or /tmp. It may
    not exist yet.

    Raises:
        ZppError: (ADDRESS) none of them is writable and has a path short enough for the address of a unix socket.
    """
    parent = usable_parent()
    if parent is None:
        raise address_error(
            f"socket files fit in none of {', '.join(map(str, parents()))}: each is not writable, or longer than"
            f" {LONGEST_PARENT} bytes",
            "give a directory with a shorter path as --ipc-dir, or set TMPDIR to one",
        )
    return parent / f"zpptool-{os.getuid()}"


def tcp_endpoint(host: str, port: int) -> str:
    """`tcp://HOST:PORT`, an IPv6 address in brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def open_ports(
    endpoints: Sequence[StageEndpoints], api_port: int, invite_port: int | None = None
) -> dict[str, list[int]]:
    """The TCP ports that listen on each host, in ascending order; API and listener for invites are beside stage 0.

    Raises:
        ZppError: (ADDRESS) the API port or the port for invites is not a port, or a stage of its host binds it.
    """
    ports: dict[str, list[int]] = {endpoint.host: [] for endpoint in endpoints}
    for endpoint in endpoints:
        if (port := urlsplit(endpoint.bind).port) is not None:
            ports[endpoint.host].append(port)
    api_host = endpoints[0].host
    beside = [("API port", "--api-port", api_port)]
    if invite_port is not None:
        beside.append(("port for invites", "--invite-port", invite_port))
        if invite_port == api_port:
            raise address_error(
                f"the port for invites {invite_port} is also the API port", "choose another --invite-port"
            )
    for what, option, port in beside:
        if not 1 <= port <= HIGHEST_PORT:
            raise address_error(f"{what} {port} does not lie between 1 and {HIGHEST_PORT}")
        for endpoint in endpoints:
            if machine_of(endpoint.host) == machine_of(api_host) and urlsplit(endpoint.bind).port == port:
                raise address_error(
                    f"the {what} {port} is also the port that stage {endpoint.stage} binds on host {api_host}",
                    f"choose another {option} or --base-port",
                )
        ports[api_host].append(port)
    return {host: sorted(numbers) for host, numbers in ports.items()}


def firewall_rules(
    endpoints: Sequence[StageEndpoints], api_port: int, invite_port: int | None = None
) -> list[FirewallRule]:
    """The ports to open: of every link that leaves its host, of the API unless it listens on loopback only, and of the
    listener for invites, for every other host."""
    rules = []
    for sender, receiver in zip(endpoints, [*endpoints[1:], endpoints[0]], strict=True):
        port = urlsplit(sender.bind).port
        if port is not None and machine_of(sender.host) != machine_of(receiver.host):
            rules.append(FirewallRule(sender.host, port, receiver.host))
    if not is_loopback(endpoints[0].host):
        rules.append(FirewallRule(endpoints[0].host, api_port, None))
    if invite_port is not None:
        first = endpoints[0].host
        others = dict.fromkeys(item.host for item in endpoints if machine_of(item.host) != machine_of(first))
        rules += [FirewallRule(first, invite_port, host) for host in others]
    return rules


def stage_flags(endpoint: StageEndpoints, num_stages: int, api_port: int) -> list[str]:
    """The arguments of `zpptool run-stage` that give a stage its index and its addresses.

    A stage binds 127.0.0.1 by default, so a host that is not loopback is named.
    """
    flags = ["--stage-idx", str(endpoint.stage), "--total-stages", str(num_stages)]
    if endpoint.bind.startswith("ipc://"):
        flags += ["--bind", endpoint.bind, "--connect", endpoint.connect]
    else:
        previous = "--prev-stage-addr" if endpoint.stage == 0 else "--prev-stage-service-addr"
        flags += ["--local-bind-port", str(urlsplit(endpoint.bind).port), previous, urlsplit(endpoint.connect).netloc]
    local = is_loopback(endpoint.host)
    if not local and not endpoint.bind.startswith("ipc://"):
        flags += ["--bind-host", endpoint.host]
    flags += keys_flags(endpoint)
    if endpoint.stage == 0:
        flags += ["--port", str(api_port)] if local else ["--host", endpoint.host, "--port", str(api_port)]
    return flags


def keys_flags(endpoint: StageEndpoints) -> list[str]:
    """The arguments of `zpptool run-stage` that name a stage's key file, as `zpptool keys generate` writes it; none
    where no link of the stage leaves the machine."""
    hosts = [urlsplit(link).hostname for link in (endpoint.bind, endpoint.connect)]
    if all(host is None or is_loopback(host) for host in hosts):
        return []
    return ["--keys", f"keys/stage_{endpoint.stage}.keys"]


def _stage_hosts(num_stages: int, hosts: Sequence[str]) -> list[str]:
    if len(hosts) not in (1, num_stages):
        raise usage_error(
            f"{len(hosts)} hosts are given for {num_stages} stages",
            f"give one host for all stages, or {num_stages}, one a stage, in order",
        )
    for host in hosts:
        if host in ("0.0.0.0", "::", "*"):
            raise address_error(f"{host!r} is every address of a machine: no stage can connect to it", "name the host")
        if not is_host(host):
            raise address_error(f"{host!r} is not a host name or an IP address", "give it without scheme and port")
    return list(hosts) * (num_stages if len(hosts) == 1 else 1)


def _address(transport: Transport, host: str, port: int, ipc_dir: Path | None) -> str:
    if transport == "tcp":
        return tcp_endpoint(host, port)
    path = (ipc_dir or default_ipc_dir()) / f"zpp-{port}"
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise address_error(
            f"{path} is too long for a socket: a path may have {LONGEST_SOCKET_PATH} bytes", "give a shorter --ipc-dir"
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
