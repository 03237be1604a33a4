# SPDX-License-Identifier: Apache-2.0
"""Refuses requests for host names that are not this front's, against DNS rebinding.

A page of another site can point its own name at the address of a front (such as 127.0.0.1) and is then, to a browser,
of the same origin. Its requests have that name in their `Host` header. A request for an IP address cannot come about
like that, so addresses are always accepted: that of the socket, of the machine, or of a pod.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from zpptool.net.addresses import is_ip_address
from zpptool.serve.front_access import ANY
from zpptool.serve.http_errors import two_hosts, wrong_host
from zpptool.serve.probe_paths import is_probe

_HOST_HEADER = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::[0-9]{0,5})?")


def admits_host(header: str, names: Collection[str]) -> bool:
    """Whether a front answers requests with that `Host` header.

    Args:
        header: the header's value.
        names: the front's names in lower case; `*.example.com` stands for all names below that domain, `*` for any.
    """
    if ANY in names:
        return True
    found = _HOST_HEADER.fullmatch(header)
    if found is None:
        return False
    if found["ipv6"]:
        return is_ip_address(found["ipv6"])
    name = found["name"].lower().rstrip(".")
    if is_ip_address(name) or name == "localhost" or name.endswith(".localhost") or name in names:
        return True
    labels = name.split(".")
    return any("*." + ".".join(labels[number:]) in names for number in range(1, len(labels)))


class HostGuard:
    """ASGI middleware that answers requests for other hosts with 421, except for probes.

    Args:
        app: the application behind it.
        names: the front's names; see `admits_host`.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request for this front; refuse any other. HTTP/1.0 allows a request without the header."""
        if scope["type"] == "http":
            hosts = [value.decode("latin-1").strip() for name, value in scope["headers"] if name == b"host"]
            if len(hosts) > 1 or (not hosts and scope["http_version"] != "1.0"):
                await two_hosts(len(hosts)).response()(scope, receive, send)
                return
            if hosts and not is_probe(scope) and not admits_host(hosts[0], self._names):
                await wrong_host(hosts[0]).response()(scope, receive, send)
                return
        await self._app(scope, receive, send)
