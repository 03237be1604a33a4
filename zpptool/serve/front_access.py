# SPDX-License-Identifier: Apache-2.0
"""Who may use a front: its API keys, the host names it answers to, and the origins whose pages may call it."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from zpptool.config.engine_arguments import allowed_origins, origins_in_json
from zpptool.errors import usage_error
from zpptool.serve.named_keys import ApiKey

ANY = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9])?")


@dataclass(frozen=True)
class FrontAccess:
    """The access rules of one front.

    Attributes:
        keys: the valid API keys; empty to require none.
        hosts: names that a `Host` header may hold besides IP addresses and `localhost`; `*` for any name.
        origins: the origins whose pages may call the API from a browser; `*` for any.
    """

    keys: tuple[ApiKey, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


def access_rules(
    keys: Sequence[ApiKey],
    bind_host: str,
    hosts: Sequence[str],
    origins: Sequence[str],
    engine_args: Sequence[str],
) -> FrontAccess:
    """The rules that the options of `zpptool serve` make.

    Args:
        keys: the valid API keys.
        bind_host: the name or address that the front listens at.
        hosts: the values of `--allowed-host`.
        origins: the values of `--allowed-origins`; without any, those of the engine's option count.
        engine_args: the engine's arguments, expanded (`engine_arguments.expanded_arguments`).

    Raises:
        ZppError: (USAGE) a value is not a host or not an origin.
    """
    own = [name.lower() for name in (bind_host, socket.gethostname()) if _HOST.fullmatch(name.lower())]
    return FrontAccess(
        keys=tuple(keys),
        hosts=tuple(dict.fromkeys([*own, *(checked_host(host) for host in hosts)])),
        origins=checked_origins(origins or allowed_origins(engine_args)),
    )


def checked_host(text: str) -> str:
    """A value of `--allowed-host` in lower case: a name without port, `*.` and a domain, or `*`.

    Raises:
        ZppError: (USAGE) it is something else.
    """
    host = text.strip().lower().removesuffix(".")
    if text.strip() != ANY and not _HOST.fullmatch(host):
        raise usage_error(
            f"--allowed-host {text} is not a host name", "For example llm.example.com, *.example.com, or * for any."
        )
    return host


def checked_origins(texts: Sequence[str]) -> tuple[str, ...]:
    """The values of `--allowed-origins`, each one origin, several with commas, or vLLM's form, a JSON list.

    Raises:
        ZppError: (USAGE) one of them is not an origin.
    """
    origins: list[str] = []
    for text in texts:
        listed = origins_in_json(text) if text.lstrip().startswith("[") else text.split(",")
        origins += [origin.strip().lower().rstrip("/") for origin in listed]
    for origin in origins:
        if origin not in (ANY, "null") and not _ORIGIN.fullmatch(origin):
            raise usage_error(
                f"--allowed-origins: {origin or 'an empty value'} is not an origin",
                "For example https://app.example.com.",
            )
    return tuple(dict.fromkeys(origins))
