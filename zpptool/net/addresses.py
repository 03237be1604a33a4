# SPDX-License-Identifier: Apache-2.0
"""What a host name is, by its text alone, and URLs as they are shown: nothing is resolved."""

from __future__ import annotations

import ipaddress

DEFAULT_HOST = "127.0.0.1"


def machine_of(host: str) -> str:
    """The machine that a host name stands for: `localhost` and the loopback address are the same one."""
    return DEFAULT_HOST if host.lower() == "localhost" else host.lower()


def is_ip_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def without_credentials(url: str) -> str:
    """A URL with `***` in place of the user name and password in it, for messages; also of a text that is not a valid
    URL, of which rather too much is left out than too little."""
    before, at, rest = url.rpartition("@")
    if not at:
        return url
    scheme, slashes, _ = before.partition("//")
    return f"{scheme}//***@{rest}" if slashes else f"***@{rest}"


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address or `localhost`."""
    machine = machine_of(host)
    return is_ip_address(machine) and ipaddress.ip_address(machine).is_loopback


def url_host(host: str) -> str:
    """A host as it is written in a URL: an IPv6 address is in brackets, and `%` before its zone is `%25`."""
    return f"[{host.replace('%', '%25')}]" if ":" in host else host
