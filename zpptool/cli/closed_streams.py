# SPDX-License-Identifier: Apache-2.0
"""Standard streams as they may be inherited: closed, as by `>&-` of a shell, or not able to encode every character."""

from __future__ import annotations

import io
import os
import sys

from zpptool.errors import usage_error


def open_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed.

    Otherwise the next file or socket that is opened gets the stream's number, and what a child prints is written to it.

    Raises:
        ZppError: (USAGE) stdout was closed: the result could not be printed.
    """
    stdout_was_closed = sys.stdout is None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _open_null(number)
            mode = "w" if number else "r"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the process ends
    if stdout_was_closed:
        raise usage_error(
            "standard output is closed: the result cannot be printed", "Redirect it, for example to a file."
        )


def escape_unprintable() -> None:
    """Print characters that the encoding of a standard stream lacks, and bytes of file names, as backslash escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _open_null(number: int) -> None:
    """Give a descriptor the null device, unless another file has taken it."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
