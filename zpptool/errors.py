# SPDX-License-Identifier: Apache-2.0
"""The error type shown to users: what went wrong and where, what to do next, and the exit code.

Functions of zpptool that refuse their input raise `ZppError` or a subclass. Commands catch it in `zpptool.cli.app.main`
and child processes in `zpptool.process.child`; both report it and exit with its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    INVALID = 3
    """Invalid layer ranges, an invalid plan or an invalid checkpoint."""
    MISMATCH = 4
    """The pipeline's tokens differ from the unsplit model's."""
    ADDRESS = 5
    """A port or an address cannot be used."""
    STAGE = 6
    """A stage died or timed out."""
    AGAIN = 75
    """A stage's worker left the ring as requested and is to be restarted. No command exits with it: it is meant for the
    process that supervises the worker."""
    INTERRUPTED = 130


class ZppError(Exception):
    """An error to be shown to the user.

    Attributes:
        message: what is wrong and where, in one sentence.
        hint: what to do next; None if the message makes it clear.
        exit_code: the exit code of the process.
        beside: further entries of the command's JSON object, next to the error.
    """

    def __init__(self, message: str, hint: str | None = None, exit_code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.beside: Mapping[str, Any] = {}

    def with_details(self, beside: Mapping[str, Any]) -> ZppError:
        """The same fault with what a command's JSON object is to hold beside it."""
        detailed = ZppError(self.message, self.hint, self.exit_code)
        detailed.beside = beside
        return detailed

    def as_json(self) -> dict[str, Any]:
        """Return the error as a JSON object."""
        return {"message": self.message, "hint": self.hint, "exit_code": int(self.exit_code)}


def usage_error(message: str, hint: str | None = None) -> ZppError:
    """Build an error for a wrong command line (exit 2)."""
    return ZppError(message, hint, ExitCode.USAGE)


def invalid_error(message: str, hint: str | None = None) -> ZppError:
    """Build an error for invalid layer ranges, an invalid plan or an invalid checkpoint (exit 3)."""
    return ZppError(message, hint, ExitCode.INVALID)


def address_error(message: str, hint: str | None = None) -> ZppError:
    """Build an error for a port or an address that cannot be used (exit 5)."""
    return ZppError(message, hint, ExitCode.ADDRESS)


def stage_error(message: str, hint: str | None = None) -> ZppError:
    """Build an error for a stage that died or did not respond in time (exit 6)."""
    return ZppError(message, hint, ExitCode.STAGE)


def in_words(fault: BaseException) -> str:
    """Format an exception in one line: the message of a `ZppError`; class name and message of any other."""
    return fault.message if isinstance(fault, ZppError) else f"{type(fault).__name__}: {fault}"
