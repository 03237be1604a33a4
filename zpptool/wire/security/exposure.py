# SPDX-License-Identifier: Apache-2.0
"""Who may be at the other end of a link: the rule, and the socket options that hold it.

The invariant: no socket is bound or connected where strangers can reach it unless it demands its one peer's CURVE key,
or the user has said `insecure`. Strangers reach every tcp address that is not loopback, and an ipc path that has no
directory above it which is this user's alone. What an address leads to is judged by its text: a name other than
`localhost` may mean another machine tomorrow.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq

from zpptool.errors import address_error
from zpptool.net.addresses import is_loopback
from zpptool.wire.security.key_files import LinkKeys
from zpptool.wire.security.zap import Gate
from zpptool.wire.sockets import Socket

_links = itertools.count()


@dataclass(frozen=True)
class LinkSecurity:
    """What one end of a link demands of the other.

    Attributes:
        keys: its own keys and its peer's; tcp links are then encrypted, and nobody else is admitted.
        insecure: strangers may reach the link, and there are no keys: the user wants it so.
    """

    keys: LinkKeys | None = None
    insecure: bool = False


def exposure(endpoint: str) -> str | None:
    """How strangers can reach an endpoint of sound form, in words; None when they cannot."""
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if path.startswith("@"):
            return "every user of this machine can reach a socket without a path"
        if not _is_private(Path(path)):
            return f"other users can enter {Path(path).parent}"
        return None
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    return None if is_loopback(host) else "other machines can reach it"


def require(endpoint: str, safety: LinkSecurity) -> None:
    """Refuse an endpoint that strangers can reach, where neither keys nor the user's word allow it.

    Raises:
        ZppError: (ADDRESS) it is such a one.
    """
    reached = exposure(endpoint)
    if reached is None or safety.insecure or (safety.keys and endpoint.startswith("tcp://")):
        return
    if endpoint.startswith("ipc://"):
        raise address_error(
            f"{endpoint} is not private: {reached}", "Put it into a directory of mode 0700 of your own."
        )
    raise address_error(
        f"{endpoint} needs keys: {reached}",
        "Give --keys FILE (zpptool keys generate makes them); or --insecure, if you trust all who can reach it.",
    )


def protect(
    socket: Socket, endpoint: str, *, bind: bool, safety: LinkSecurity, refused: Callable[[str, str], None]
) -> bool:
    """Prepare a socket for its endpoint, before it is bound or connected; whether it is now encrypted.

    The end that binds is CURVE's server and asks the gate who may enter; the end that connects demands its key.

    Args:
        refused: is told the address of whoever is not let in, and why, from the gate's thread.

    Raises:
        ZppError: (ADDRESS) strangers can reach the endpoint; see `require`.
    """
    require(endpoint, safety)
    keys = safety.keys
    if keys is None or not endpoint.startswith("tcp://"):
        return False
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    if not bind:
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.peer_public)
        return True
    domain = f"zpptool.{next(_links)}"
    Gate.of(socket.context).admit(domain, keys, refused)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # where no gate answers, nobody enters
    return True


def _is_private(path: Path) -> bool:
    """Whether a directory above the path is this user's and nobody else may pass through it."""
    me = os.geteuid()
    try:
        found = [above.stat() for above in path.resolve().parents]
    except OSError:
        return False
    return any(one.st_uid == me and not one.st_mode & (stat.S_IXGRP | stat.S_IXOTH) for one in found)
