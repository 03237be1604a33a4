# SPDX-License-Identifier: Apache-2.0
"""The addresses of `--upstream`, and the credentials in them.

The invariant: a user name and password in an upstream's URL are sent to that upstream as `Authorization`, and are shown
nowhere: the URL that names the upstream everywhere else does not have them.
"""

from __future__ import annotations

import base64
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import httpx

from zpptool.errors import usage_error
from zpptool.net.addresses import without_credentials

_EXAMPLE = "For example http://10.0.0.2:8000."
Origin = tuple[str, str, int | None]


@dataclass(frozen=True)
class RemoteAddress:
    """The address of a pipeline that runs elsewhere.

    Attributes:
        url: its base URL, without credentials and without a trailing slash.
        authorization: the value of the header `Authorization` for requests to it; None for the client's own.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)


def parse_address(text: str) -> RemoteAddress:
    """The address in the URL of a server.

    Raises:
        ZppError: (USAGE) it is not the URL of a server.
    """
    shown = without_credentials(text)
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:  # its message may hold a part of the password
        raise usage_error(f"--upstream {shown} is not a valid URL", _EXAMPLE) from None
    if url.scheme not in ("http", "https") or not url.host or url.path not in ("", "/") or url.query or url.fragment:
        raise usage_error(f"--upstream {shown} is not the address of a server", _EXAMPLE)
    bare = str(httpx.URL(scheme=url.scheme, host=url.host, port=url.port)).rstrip("/")
    if not url.userinfo:
        return RemoteAddress(bare)
    credentials = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
    return RemoteAddress(bare, f"Basic {credentials}")


def refuse_two_credentials(addresses: Sequence[RemoteAddress]) -> None:
    """Refuse one server with different credentials: a request could not be matched with them.

    Raises:
        ZppError: (USAGE) there is one.
    """
    known: dict[str, str | None] = {}
    for address in addresses:
        if known.setdefault(address.url, address.authorization) != address.authorization:
            raise usage_error(f"--upstream {address.url} is given with different credentials", "Give it once.")


class UpstreamAuth(httpx.Auth):
    """Gives each request to an upstream the `Authorization` of that upstream; any other request keeps its own.

    Args:
        addresses: the upstreams.
    """

    def __init__(self, addresses: Sequence[RemoteAddress]) -> None:
        self._values = {
            _origin(httpx.URL(address.url)): address.authorization
            for address in addresses
            if address.authorization is not None
        }

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Set the header, and send the request once."""
        value = self._values.get(_origin(request.url))
        if value is not None:
            request.headers["authorization"] = value
        yield request


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.host, url.port
