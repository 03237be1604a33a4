# SPDX-License-Identifier: Apache-2.0
"""How weight files are written. A module of its own so that the command line can list the choices without imports."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """How weight files are written."""

    AUTO = "auto"
    """Reflink if the file system supports it, else copy."""
    COPY = "copy"
    """Always copy, so that nothing is shared with the source."""
    REFLINK = "reflink"
    """Reflink; fail if the file system does not support it."""
    HARDLINK = "hardlink"
    """Hard link source files that one stage takes whole, copy the others. Writing to a link changes the source."""
