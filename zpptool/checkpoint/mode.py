# SPDX-License-Identifier: Apache-2.0
"""How weight files come to be; here by itself so that the command line can name the choices and load nothing else."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """How weight files come to be."""

    AUTO = "auto"
    """Reflink where the file system can, else copy."""
    COPY = "copy"
    """Copy, so that nothing is shared with the source."""
    REFLINK = "reflink"
    """Reflink what can be, and fail on a file system that cannot."""
    HARDLINK = "hardlink"
    """Hard links to source files that a stage takes whole, else copy: a write to the one changes the other."""
