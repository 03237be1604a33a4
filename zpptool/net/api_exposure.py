# SPDX-License-Identifier: Apache-2.0
"""Which HTTP servers need an API key: those that other machines can reach. Addresses are judged by their text."""

from __future__ import annotations

from zpptool.errors import address_error
from zpptool.net.addresses import is_loopback


def refuse_open_front(host: str, *, has_keys: bool, insecure: bool) -> None:
    """Refuse a front that other machines can reach and that asks for no key, unless the user allows it.

    Args:
        host: the address that it listens on.
        has_keys: whether it asks for API keys.
        insecure: whether the user allows a front without keys.

    Raises:
        ZppError: (ADDRESS) it is refused.
    """
    if is_loopback(host) or has_keys or insecure:
        return
    raise address_error(
        f"a front at {host} needs API keys: other machines can reach it",
        "Give --api-key-file FILE, or set ZPP_API_KEY; or --insecure, if you trust all who can reach it.",
    )


def open_api_warning(host: str, *, has_keys: bool) -> str | None:
    """What to warn of where an API listens on an address; None where other machines cannot reach it, or it has keys."""
    if is_loopback(host) or has_keys:
        return None
    return f"the API at {host} asks for no key: every machine that can reach it can use the model"
