# SPDX-License-Identifier: Apache-2.0
"""Check that the key files of this machine's stages exist and are readable by their owner only."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from zpptool.doctor.finding import Finding, blocker, ok
from zpptool.doctor.target import Target

CHECK = "keys"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def check_keys(target: Target) -> Iterator[Finding]:
    """Check the given key file, or all in the given directory; nothing if none is given."""
    if target.keys is None:
        return
    files = sorted(target.keys.glob("*.keys")) if target.keys.is_dir() else [target.keys]
    if not files:
        yield blocker(CHECK, f"{target.keys} holds no key file", "Create them with zpptool keys generate.")
    for file in files:
        yield keys_finding(file)


def keys_finding(file: Path) -> Finding:
    """Check one key file by owner and mode; its content is not read."""
    try:
        found = file.stat()
    except OSError as cause:
        return blocker(CHECK, f"{file}: {cause.strerror}", "Create key files with zpptool keys generate.")
    if found.st_mode & _OTHERS:
        return blocker(CHECK, f"{file} can be read by others than its owner", f"chmod 600 {file}")
    if not os.access(file, os.R_OK):
        return blocker(CHECK, f"{file} cannot be read by this user", f"Run as its owner, or chown {file}.")
    return ok(CHECK, f"{file} is readable by its owner only")
