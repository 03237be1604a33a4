# SPDX-License-Identifier: Apache-2.0
"""Connections and greetings that one end of a link has refused: counted, logged, and kept for the link's status."""

from __future__ import annotations

import threading

from zpptool.log import PlaceLogger
from zpptool.wire.link.rate_limited_log import RateLimitedLog


class RefusalLog:
    """The refusals and failed connections of one end. Any thread may report one.

    Args:
        logger: of the link's place.

    Attributes:
        count: how many connections and greetings were refused.
        last_error: the last of these, or the last connection attempt that failed; empty for none.
    """

    def __init__(self, logger: PlaceLogger) -> None:
        self._lock = threading.Lock()
        self._log = RateLimitedLog(logger)
        self.count = 0
        self.last_error = ""

    def refused(self, endpoint: str, text: str) -> None:
        """Count and log a connection or a greeting that this end has refused."""
        with self._lock:  # the ZAP thread reports here too
            self.count += 1
            self.last_error = text
        self._log.warning(f"{endpoint}: {text}")

    def failed(self, endpoint: str, text: str) -> None:
        """Log a connection attempt of this end that failed."""
        self.last_error = text
        self._log.warning(f"{endpoint}: {text}")

    def warning(self, text: str) -> None:
        """Log something else that the peer does, under the same rate limit."""
        self._log.warning(text)
