# SPDX-License-Identifier: Apache-2.0
"""Which addresses need keys, and the socket options that enforce them.

The invariant: no socket is bound or connected where other users or machines can reach it unless it demands its one
peer's CURVE key, or the user has chosen `insecure`. Others can reach every tcp address that is not loopback, and an ipc
path unless one of the directories above it can be entered by this user alone. An address is judged by its text: a name
other than `localhost` may resolve to another machine tomorrow.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq

from zpptool.errors import address_error
from zpptool.net.addresses import is_loopback
from zpptool.wire.security.key_files import LinkKeys
from zpptool.wire.security.zap import ZapServer
from zpptool.wire.sockets import Socket


@dataclass(frozen=True)
class LinkSecurity:
    """What one end of a link demands of the other.

    Attributes:
        keys: its own keys and its peer's; tcp links are then encrypted, and only that peer is admitted.
        insecure: whether the user allows a link without keys where others can reach it.
    """

    keys: LinkKeys | None = None
    insecure: bool = False


def exposure(endpoint: str) -> str | None:
    """How others can reach a well-formed endpoint, as a clause; None when they cannot."""
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if path.startswith("@"):
            return "every user of this machine can reach a socket without a path"
        if not _is_private(Path(path)):
            return f"other users can enter {Path(path).parent}"
        return None
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    return None if is_loopback(host) else "other machines can reach it"


def require(endpoint: str, security: LinkSecurity) -> None:
    """Refuse an endpoint that others can reach, unless keys or `insecure` allow it.

    Raises:
        ZppError: (ADDRESS) it is refused.
    """
    reached = exposure(endpoint)
    if reached is None or security.insecure or (security.keys and endpoint.startswith("tcp://")):
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
    socket: Socket, endpoint: str, *, bind: bool, security: LinkSecurity, on_refused: Callable[[str, str], None]
) -> bool:
    """Prepare a socket for its endpoint, before it is bound or connected; return whether it is now encrypted.

    The end that binds is CURVE's server, and its ZAP server admits the peer's key; the end that connects demands the
    binding end's key.

    Args:
        socket: the only socket of its context that binds.
        endpoint: the address that it will be bound or connected to.
        bind: whether it binds.
        security: the keys.
        on_refused: called with the address of a connection that is not admitted and the reason, from another thread.

    Raises:
        ZppError: (ADDRESS) others can reach the endpoint; see `require`.
    """
    require(endpoint, security)
    keys = security.keys
    if keys is None or not endpoint.startswith("tcp://"):
        return False
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    if not bind:
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.peer_public)
        return True
    ZapServer(socket.context, keys, on_refused)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an answer, no connection is admitted
    return True


def _is_private(path: Path) -> bool:
    """Whether a directory above the path belongs to this user and no other user can enter it."""
    me = os.geteuid()
    try:
        directories = [directory.stat() for directory in path.resolve().parents]
    except OSError:
        return False
    return any(each.st_uid == me and not each.st_mode & (stat.S_IXGRP | stat.S_IXOTH) for each in directories)
