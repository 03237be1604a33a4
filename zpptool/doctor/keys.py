# SPDX-License-Identifier: Apache-2.0
"""The key file of this machine's stage: is it there, and its owner's alone?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from zpptool.doctor.finding import Finding, blocker, ok
from zpptool.doctor.target import Target

CHECK = "keys"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def check_keys(patient: Target) -> Iterator[Finding]:
    """Every key file that is named, or lies in the directory that is; nothing where none is named."""
    if patient.keys is None:
        return
    files = sorted(patient.keys.glob("*.keys")) if patient.keys.is_dir() else [patient.keys]
    if not files:
        yield blocker(CHECK, f"{patient.keys} holds no key file", "zpptool keys generate writes them.")
    for file in files:
        yield keys_finding(file)


def keys_finding(file: Path) -> Finding:
    """One key file, by its owner and mode; its content is for the stage to read."""
    try:
        found = file.stat()
    except OSError as cause:
        return blocker(CHECK, f"{file}: {cause.strerror}", "zpptool keys generate writes key files.")
    if found.st_mode & _OTHERS:
        return blocker(CHECK, f"{file} can be read by others than its owner", f"chmod 600 {file}")
    if not os.access(file, os.R_OK):
        return blocker(CHECK, f"{file} cannot be read by this user", f"Run as its owner, or chown {file}.")
    return ok(CHECK, f"{file} is its owner's alone")
