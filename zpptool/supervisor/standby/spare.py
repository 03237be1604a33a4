# SPDX-License-Identifier: Apache-2.0
"""One spare process, as its parent sees it (the process itself is `standby.process`)."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

import msgspec

from zpptool.process.group import kill_group
from zpptool.supervisor.standby.process import READY, TAKEN, Assignment

TAKE_S = 1.0
"""Seconds that a ready spare may take to confirm its assignment."""


@dataclass
class Spare:
    """A process without an assignment.

    Attributes:
        popen: the process.
        connection: this end of the socket pair.
        env: what was added to its environment.
        ready_at: when it reported that it is ready; None if it has not.
    """

    popen: subprocess.Popen[bytes]
    connection: Connection
    env: Mapping[str, str]
    ready_at: float | None = None

    def poll_ready(self, now: float) -> bool:
        """Receive its report if there is one; return whether it has become ready in this call.

        Args:
            now: the time, kept as `ready_at`.
        """
        try:
            if self.ready_at is None and self.connection.poll() and self.connection.recv_bytes() == READY:
                self.ready_at = now
                return True
        except (EOFError, OSError):
            return False
        return False

    def assign(self, assignment: Assignment) -> bool:
        """Send its assignment, and return whether it was confirmed within `TAKE_S` seconds."""
        try:
            self.connection.send_bytes(msgspec.msgpack.encode(assignment))
            taken = self.connection.poll(TAKE_S) and self.connection.recv_bytes() == TAKEN
        except (EOFError, OSError):
            return False
        self.connection.close()
        return taken

    def end(self) -> None:
        """Terminate immediately: a spare holds no request state."""
        self.connection.close()
        kill_group(self.popen.pid)
        self.popen.wait()
