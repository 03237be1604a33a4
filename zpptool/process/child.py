# SPDX-License-Identifier: Apache-2.0
"""What every process that zpptool starts does first and last: die with its parent, and end with one readable error."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import NoReturn

from zpptool.errors import ExitCode, ZppError
from zpptool.log import configure

PARENT_POLL_S = 0.5
EXIT_GRACE_S = 6.0
PARENT_VARIABLE = "ZPP_PARENT_PID"
"""Tells a child whose child it is, for the parent may have ended before the child can ask."""


@cache
def die_with_parent(*, at_once: bool = False) -> None:
    """End this process soon after its parent has ended, however and whenever it ended. Asked twice, it is done once.

    Args:
        at_once: end it without any order, like a crash.

    A process whose parent dies is adopted by another one, so its parent id changes: that is looked at from a thread of
    its own, twice a second. It is asked to end with SIGTERM first.
    """
    parent = int(os.environ.pop(PARENT_VARIABLE, os.getppid()))  # popped: it is not for the children of this one

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        if at_once:
            os._exit(ExitCode.STAGE)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(EXIT_GRACE_S)
        os._exit(ExitCode.STAGE)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def end_on_sigterm() -> None:
    """Leave in good order on the first SIGTERM, and at the latest after `EXIT_GRACE_S` seconds in any order."""

    def leave(_number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_before_long(128 + signal.SIGTERM)
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)


def end_before_long(code: int) -> None:
    """End this process with that code after `EXIT_GRACE_S` seconds, if it has not ended by itself: whatever it does."""

    def watch() -> None:
        time.sleep(EXIT_GRACE_S)
        print(f"error: still busy {EXIT_GRACE_S:g} s after it was to end: ended by force", file=sys.stderr, flush=True)
        os._exit(code)

    threading.Thread(target=watch, name="exit-watch", daemon=True).start()


def run_child(who: str, body: Callable[[], None]) -> NoReturn:
    """Run a child process's body; whatever ends it, say so in one line and exit with its code.

    Args:
        who: what this process is, for its log (`stage 1`, `head`).
        body: does the work and returns when it is done.
    """
    die_with_parent()
    try:
        configure(place=who)
        body()
    except ZppError as fault:
        print(f"error: {who}: {fault.message}", file=sys.stderr)
        if fault.hint:
            print(f"  hint: {fault.hint}", file=sys.stderr)
        sys.exit(fault.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(ExitCode.OK)
