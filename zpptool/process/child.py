# SPDX-License-Identifier: Apache-2.0
"""What every child process of zpptool does at its start and its end: it ends with its parent, and logs one error."""

from __future__ import annotations

import logging
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
from zpptool.log import LogFormat, LogLevel, configure
from zpptool.process.environment import take_parent_pid

PARENT_POLL_S = 0.5
EXIT_GRACE_S = 6.0
_logger = logging.getLogger(__name__)


@cache
def die_with_parent(*, at_once: bool = False) -> None:
    """End this process soon after its parent has ended, for any reason and at any time. A second call does nothing.

    A process whose parent dies is adopted by another process, so its parent id changes. A thread checks for that every
    `PARENT_POLL_S` seconds. It sends SIGTERM first, and ends the process `EXIT_GRACE_S` seconds later.

    Args:
        at_once: end without any cleanup, as a crash does.
    """
    parent = take_parent_pid()

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
    """On the first SIGTERM raise SystemExit, so that cleanup runs; after `EXIT_GRACE_S` seconds end without it."""

    def leave(_number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_before_long(128 + signal.SIGTERM)
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)


def end_before_long(code: int) -> None:
    """End this process with an exit code in `EXIT_GRACE_S` seconds, unless it has ended by then."""

    def watch() -> None:
        time.sleep(EXIT_GRACE_S)
        _logger.error("still busy %g s after it was to end: ended by force", EXIT_GRACE_S)
        os._exit(code)

    threading.Thread(target=watch, name="exit-watch", daemon=True).start()


def run_child(name: str, body: Callable[[], None]) -> NoReturn:
    """Run a child process's body, log the error that ends it, and exit with that error's code.

    The parent finds the error in the child's log by its form (`process.group.Child.tail`). An exception that is no
    `ZppError` is logged as critical, with its traceback.

    Args:
        name: what this process is, for its log (`stage 1`, `head`).
        body: does the work and returns when it is done.
    """
    die_with_parent()
    try:
        _configure(name)
        body()
    except ZppError as fault:
        _logger.error("%s", fault.message, extra={"hint": fault.hint, "exit_code": int(fault.exit_code)})
        sys.exit(fault.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception:  # every error is logged as configured: the parent reads the log
        _logger.critical("ended by an unexpected error", exc_info=True, extra={"exit_code": int(ExitCode.FAILURE)})
        sys.exit(ExitCode.FAILURE)
    sys.exit(ExitCode.OK)


def _configure(name: str) -> None:
    """Set up logging from the environment.

    Raises:
        ZppError: (USAGE) the environment asks for an unknown level or format; it is logged with the defaults.
    """
    try:
        configure(place=name)
    except ZppError:
        configure(LogLevel.INFO, LogFormat.TEXT, place=name)
        raise
