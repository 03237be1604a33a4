# SPDX-License-Identifier: Apache-2.0
"""net/addresses."""

from __future__ import annotations

import ipaddress

DEFAULT_HOST = "127.0.0.1"


def _machine(host: str) -> str:
    """The name under which stages of one host are counted."""
    return DEFAULT_HOST if host.lower() == "localhost" else host.lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host, by its text alone, is this machine's own loopback."""
    machine = _machine(host)
    return _is_address(machine) and ipaddress.ip_address(machine).is_loopback
