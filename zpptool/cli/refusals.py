# SPDX-License-Identifier: Apache-2.0
"""Errors of Python, the system and the parser of the command line as errors for the user."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from zpptool.errors import ZppError, invalid_error, usage_error

EXTRAS = {"httpx": "serve", "starlette": "serve", "uvicorn": "serve", "transformers": "transformers", "vllm": "vllm"}
"""Packages that the base installation lacks, and the extra that installs each."""
_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})


def asks_for_json(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether a command line asks for one JSON object, by --json or by ZPP_JSON.

    Args:
        arguments: those before `--`.
        environment: of the process.
    """
    return "--json" in arguments or environment.get("ZPP_JSON", "").strip().lower() in _TRUE


def refusal_of(cause: Exception) -> ZppError | None:
    """Return the error to show for an exception that input or the system caused; None if it is a fault of zpptool.

    The message is empty if the parser has shown the help instead, because no command was named.
    """
    if isinstance(cause, ModuleNotFoundError):
        extra = EXTRAS.get((cause.name or "").partition(".")[0])
        if extra is None:
            return None
        return usage_error(
            f"this command needs {cause.name}, which is not installed", f"pip install 'zpptool[{extra}]'"
        )
    if isinstance(cause, OSError):
        return _refusal_of_system(cause)
    if isinstance(cause, MemoryError):
        return ZppError("there is not enough memory")
    words = getattr(cause, "format_message", None)  # of the parser's errors, whose base class has no public name
    if callable(words):
        context = getattr(cause, "ctx", None)
        command = context.command_path if context is not None else "zpptool"
        return usage_error(" ".join(str(words()).split()), f"{command} --help shows the options.")
    return None


def _refusal_of_system(cause: OSError) -> ZppError | None:
    if cause.filename is None:
        return ZppError("a pipe was closed") if cause.errno == errno.EPIPE else None
    message = f"{cause.filename} cannot be used: {cause.strerror}"
    if cause.errno in (errno.EACCES, errno.EPERM):
        return invalid_error(message, "Check the permissions of it and of the directories above it.")
    if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return ZppError(message)
    return invalid_error(message)
