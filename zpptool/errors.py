# SPDX-License-Identifier: Apache-2.0
"""What went wrong, where, what to do next, and the exit code: the only error type that reaches a user.

Every function of zpptool that refuses its input raises `ZppError` (or a subclass); `zpptool.cli.app.main` is the one
place that catches it, prints it and exits with its code.
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
    """Layer ranges, a plan or a checkpoint that cannot be right."""
    MISMATCH = 4
    """The pipeline's tokens differ from the unsplit model's."""
    ADDRESS = 5
    """A port or an address that cannot be used."""
    STAGE = 6
    """A stage died or timed out."""
    AGAIN = 75
    """A stage's worker has left because it was asked to, and is to be started again. No command ends with it: it is for
    whoever keeps the worker up."""
    INTERRUPTED = 130


class ZppError(Exception):
    """One fault as a user should read it.

    Attributes:
        message: what is wrong and where, one sentence.
        hint: what to do next, or None where the message says it.
        exit_code: what the process exits with.
        beside: what a command's JSON object holds beside the error.
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
        """The fault for machines."""
        return {"message": self.message, "hint": self.hint, "exit_code": int(self.exit_code)}


def usage_error(message: str, hint: str | None = None) -> ZppError:
    """A command line that cannot be understood (exit 2)."""
    return ZppError(message, hint, ExitCode.USAGE)


def invalid_error(message: str, hint: str | None = None) -> ZppError:
    """Layer ranges, a plan or a checkpoint that cannot be right (exit 3)."""
    return ZppError(message, hint, ExitCode.INVALID)


def address_error(message: str, hint: str | None = None) -> ZppError:
    """A port or an address that cannot be used (exit 5)."""
    return ZppError(message, hint, ExitCode.ADDRESS)


def stage_error(message: str, hint: str | None = None) -> ZppError:
    """A stage that died or did not answer in time (exit 6)."""
    return ZppError(message, hint, ExitCode.STAGE)


def in_words(fault: BaseException) -> str:
    """An error in one line: the message of one of ours, any other behind the name of its class."""
    return fault.message if isinstance(fault, ZppError) else f"{type(fault).__name__}: {fault}"
