# SPDX-License-Identifier: Apache-2.0
"""How fast a TCP connection delivers, as the kernel measures it.

The invariant: a connection that waits for its program looks as slow as that program. Such a measurement is reported as
a lower bound of the link's speed.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

# struct tcp_info of Linux (include/uapi/linux/tcp.h): the lowest bit of byte 7 says that the program was the limit,
# bytes 160 to 167 hold the delivery rate in bytes a second.
_LIMITED_AT, _RATE_AT = 7, 160
_RATE = struct.Struct("=Q")
_WEIGHT = 0.4


class Rate(NamedTuple):
    """Bytes a second, and whether that is a lower bound because the program, not the link, was the limit."""

    speed: float
    at_least: bool


def delivery_rate(connection: int) -> Rate | None:
    """How fast a connection delivers.

    Args:
        connection: the file descriptor, which stays open. One that is closed already has no speed.

    Returns:
        the rate; None where it is not known (another system, another kind of connection), or does not matter: both ends
        are on this host, where what looks slow is a busy processor.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        borrowed = socket.socket(fileno=connection)
    except (OSError, ValueError):
        return None
    try:
        if borrowed.family not in (socket.AF_INET, socket.AF_INET6) or borrowed.getpeername()[0] == _own_name(borrowed):
            return None
        info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RATE_AT + _RATE.size)
    except OSError:
        return None
    finally:
        borrowed.detach()
    if len(info) < _RATE_AT + _RATE.size:
        return None
    (speed,) = _RATE.unpack_from(info, _RATE_AT)
    return Rate(float(speed), bool(info[_LIMITED_AT] & 1)) if speed else None


def _own_name(connection: socket.socket) -> str:
    host: str = connection.getsockname()[0]
    return host


def updated_speed(known: float | None, rate: Rate | None, *, bursts: bool = False) -> float | None:
    """The link's speed, from what was known and what is measured now; None while neither is reliable.

    Args:
        known: the speed so far.
        rate: the measurement.
        bursts: whether messages were sent that are long enough to show the link's speed. The kernel keeps the highest
            speed of those that did not fill it for long.
    """
    if rate is None:
        return None
    if known is None:
        return rate.speed if bursts or not rate.at_least else None
    # A higher speed is taken over at once; a lower one may come from a processor that is busy for a moment.
    slower = known if rate.at_least else known + _WEIGHT * (rate.speed - known)
    return max(slower, rate.speed)
