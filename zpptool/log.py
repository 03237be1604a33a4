# SPDX-License-Identifier: Apache-2.0
"""log."""

from __future__ import annotations

import sys
from contextlib import suppress


def say(who: str, text: str) -> None:
    """One line of a stage's log: who, and what it does or waits for. A log that cannot be written (a full disk) is no
    reason to end."""
    with suppress(OSError):
        print(f"zpptool {who}: {text}", file=sys.stderr, flush=True)
