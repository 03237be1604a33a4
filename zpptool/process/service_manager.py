# SPDX-License-Identifier: Apache-2.0
"""Notify the service manager (systemd, `Type=notify`): ready, stopping, and alive for its watchdog. See sd_notify(3).

A notification is one datagram to the Unix socket that `NOTIFY_SOCKET` names; a name that begins with `@` is abstract.
Where nothing is named, nothing is sent. A datagram that cannot be sent is logged and not repeated: a service manager
that does not listen is no reason for a stage to fail.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping

SOCKET, WATCHDOG_US, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"
LOOK_S = 0.5
_logger = logging.getLogger(__name__)


class ServiceManager:
    """The service manager that has started this process, if one has.

    Args:
        address: of its socket; empty for none.
        watchdog_s: seconds within which it awaits a sign of life; 0 for none.
        clock: seconds.
    """

    def __init__(self, address: str, watchdog_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._every_s = watchdog_s / 2
        self._look_s = min(LOOK_S, self._every_s / 2) if self._every_s else LOOK_S
        self._clock = clock
        self._is_ready = False
        self._looked_at = self._alive_at = -float("inf")

    def tick(self, is_ready: Callable[[], bool], makes_progress: Callable[[], bool]) -> None:
        """Notify it of what has changed; called much more often than every `LOOK_S` seconds, in which it looks once.

        Args:
            is_ready: whether the service is; said once.
            makes_progress: whether the watchdog is to be kept from acting.
        """
        now = self._clock()
        if not self._address or now - self._looked_at < self._look_s:
            return
        self._looked_at = now
        if not self._is_ready and is_ready():
            self._is_ready = True
            self._send(READY)
        if self._every_s and now - self._alive_at >= self._every_s and makes_progress():
            self._alive_at = now
            self._send(ALIVE)

    def stopping(self) -> None:
        """Notify it that the service stops."""
        self._send(STOPPING)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto(state.encode(), self._address)
        except (OSError, ValueError) as cause:
            _logger.warning("the service manager cannot be notified of %s: %s", state, cause)


def service_manager(env: MutableMapping[str, str]) -> ServiceManager:
    """The service manager that the environment names. Its variables are removed: they are not for child processes.

    Args:
        env: the environment of this process.
    """
    address, pid = env.pop(SOCKET, ""), env.pop(WATCHDOG_PID, "")
    period = env.pop(WATCHDOG_US, "")
    is_mine = pid in ("", str(os.getpid()))
    is_watched = bool(address) and is_mine and period.isascii() and period.isdigit()
    return ServiceManager(address, int(period) / 1e6 if is_watched else 0.0)
