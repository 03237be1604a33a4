# SPDX-License-Identifier: Apache-2.0
"""Whether a process that has ended is to be started again, and when: a pure rule.

The invariant: a process that ends by a decision (asked to stop, refused, or because the whole pipeline is given up) is
not restarted. One that was killed or has failed is, until it has failed `BACKOFF.max_failures` times in a row before it
was ready. One that has left because it was asked to is restarted too, and that is no failure.
"""

from __future__ import annotations

from zpptool.errors import ExitCode
from zpptool.supervisor.backoff import Backoff

BACKOFF = Backoff(max_failures=5, first_s=1.0, longest_s=16.0, immediate=1)


class RestartPolicy:
    """Counts the consecutive failures of the processes of one stage, by name."""

    def __init__(self) -> None:
        self._consecutive_failures: dict[str, int] = {}

    def delay_s(self, name: str, code: int, *, became_ready: bool) -> float | None:
        """Seconds to wait before the restart; None for no restart.

        Args:
            name: of the process.
            code: what it ended with, as `subprocess` reports it.
            became_ready: whether it had loaded, so that its failures are no longer in a row.
        """
        if code == ExitCode.AGAIN:
            return 0.0
        if code >= 0 and code != ExitCode.FAILURE:
            return None
        failures = 0 if became_ready else self._consecutive_failures.get(name, 0) + 1
        self._consecutive_failures[name] = failures
        return None if BACKOFF.is_exhausted(failures) else BACKOFF.delay_s(failures)
