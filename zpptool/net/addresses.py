# SPDX-License-Identifier: Apache-2.0
"""What a host name is, by its text alone: nothing is resolved."""

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


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address or `localhost`."""
    machine = machine_of(host)
    return is_ip_address(machine) and ipaddress.ip_address(machine).is_loopback
