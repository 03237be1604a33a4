# SPDX-License-Identifier: Apache-2.0
"""The addresses of one stage's links, from what the user gave; what was not given is as `plan-ports` plans it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from zpptool.config.endpoints import DEFAULT_BASE_PORT, HIGHEST_PORT, StageEndpoints, open_ports, plan_endpoints
from zpptool.errors import address_error, usage_error
from zpptool.net.addresses import DEFAULT_HOST, is_loopback

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class LinkAddresses:
    """What a user may give about the links of one stage; None for what follows from the plan of ports.

    Attributes:
        bind: the whole endpoint to bind; instead of `bind_host` and `bind_port`.
        connect: the whole endpoint to connect to; instead of `previous` and `last`.
        bind_host: the address to bind at; the stage's own host in `hosts` if None.
        bind_port: the port to bind.
        previous: `HOST:PORT` of the stage before (of the last stage, on stage 0).
        last: stage 0 only: `HOST:PORT` of the last stage.
        base_port: the plan's first port.
        hosts: the plan's hosts, one for all stages or one a stage.
    """

    bind: str | None = None
    connect: str | None = None
    bind_host: str | None = None
    bind_port: int | None = None
    previous: str | None = None
    last: str | None = None
    base_port: int = DEFAULT_BASE_PORT
    hosts: tuple[str, ...] = ()

    def stage_before(self, stage: int) -> str | None:
        """`HOST:PORT` that `stage` receives from, if it was given.

        Raises:
            ZppError: (USAGE) both addresses were given, or that of the last stage on another one than stage 0.
        """
        if self.previous is not None and self.last is not None:
            raise usage_error("the address of the stage before is given more than once")
        if stage > 0 and self.last is not None:
            raise usage_error("--prev-stage-addr is for stage 0", "Use --prev-stage-service-addr HOST:PORT.")
        return self.last if self.previous is None else self.previous


def resolve_links(stage: int, num_stages: int, given: LinkAddresses) -> tuple[str, str]:
    """The endpoints that a stage binds and connects to.

    Args:
        stage: the stage's index.
        num_stages: how many stages there are.
        given: what the user gave.

    Raises:
        ZppError: (ADDRESS) a port or an address is not valid; (USAGE) hosts do not fit the stages, or an address is
            given twice.
    """
    previous = given.stage_before(stage)
    if given.bind is not None and (given.bind_host, given.bind_port) != (None, None):
        raise usage_error("the address to bind is given twice", "Give --bind, or --bind-host and --local-bind-port.")
    if given.connect is not None and previous is not None:
        raise usage_error("the address to connect to is given twice", "Give --connect or the stage before, not both.")
    planned = plan_endpoints(num_stages, given.base_port, given.hosts)[stage]
    bind = _bound_endpoint(given, planned) if given.bind is None else given.bind
    connect = given.connect
    if connect is None:
        connect = planned.connect if previous is None else f"tcp://{host_port(previous)}"
    if bind == connect and num_stages > 1:
        raise address_error(
            f"stage {stage} is to bind {bind} and to connect to the same address",
            "On one host every stage binds a port of its own, the base port + its place: see zpptool plan-ports.",
        )
    return bind, connect


def refuse_api_port(bind: str, connect: str, num_stages: int, api_port: int, given: LinkAddresses) -> None:
    """Refuse an API port that is not valid, or that a link on stage 0's machine uses.

    Args:
        bind: what stage 0 binds.
        connect: what the head connects to.
        num_stages: how many stages there are.
        api_port: the port.
        given: the base port and the hosts of the plan. Where stage 0's links are as planned, the others are taken to
            be so too.

    Raises:
        ZppError: (ADDRESS) it cannot be used.
    """
    links = plan_endpoints(num_stages, given.base_port, given.hosts)
    if (bind, connect) != (links[0].bind, links[0].connect):
        ends = [(0, bind)] if num_stages == 1 else [(0, bind), (num_stages - 1, connect)]
        links = tuple(StageEndpoints(stage, _machine_of(end, bind), end, connect="") for stage, end in ends)
    open_ports(links, api_port)


def host_port(text: str) -> str:
    """`HOST:PORT` as it was given, checked; a leading `tcp://` is removed.

    Raises:
        ZppError: (ADDRESS) it is not of that form.
    """
    match = _HOST_PORT.fullmatch(text.strip().removeprefix("tcp://"))
    if match is None or not 1 <= int(match["port"]) <= HIGHEST_PORT:
        raise address_error(f"{text!r} is not an address of the form HOST:PORT", "For example 10.0.0.2:15550.")
    return match[0]


def head_endpoint(return_link: str, given: str | None = None) -> str:
    """The endpoint that the head of a script binds and stage 0 connects to.

    Args:
        return_link: what the head connects to, `tcp://HOST:PORT`.
        given: `HOST:PORT` where the user gave it; otherwise the port after the return port, on this machine.

    Raises:
        ZppError: (ADDRESS) it is not an address, or none follows from the return link.
    """
    if given is not None:
        return f"tcp://{host_port(given)}"
    _, _, port = return_link.removeprefix("tcp://").rpartition(":")
    if not return_link.startswith("tcp://") or not port.isdecimal() or int(port) >= HIGHEST_PORT:
        raise address_error(f"no port for the head follows from the return link {return_link}", "Give --head-addr.")
    return f"tcp://{DEFAULT_HOST}:{int(port) + 1}"


def _bound_endpoint(given: LinkAddresses, planned: StageEndpoints) -> str:
    """The endpoint to bind, from the address and the port that were given and those that were planned."""
    if given.bind_port is not None and not 1 <= given.bind_port <= HIGHEST_PORT:
        raise address_error(f"the port to bind, {given.bind_port}, does not lie between 1 and {HIGHEST_PORT}")
    planned_host, _, planned_port = planned.bind.removeprefix("tcp://").rpartition(":")
    return f"tcp://{_bracketed(given.bind_host or planned_host)}:{given.bind_port or planned_port}"


def _machine_of(endpoint: str, own: str) -> str:
    """The host of an endpoint; `DEFAULT_HOST` where it is the machine of the stage that binds `own`."""
    host = urlsplit(endpoint).hostname or DEFAULT_HOST
    return DEFAULT_HOST if is_loopback(host) or host == urlsplit(own).hostname else host


def _bracketed(host: str) -> str:
    """A host as an endpoint holds it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
