# SPDX-License-Identifier: Apache-2.0
"""Where the links in a checkpoint lead: to files of the checkpoint, to the Hub cache's blobs, or out of it.

A checkpoint that somebody else made may hold a link to any file of this machine, and a split copies what links lead to.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from zpptool.errors import ZppError, invalid_error

_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""The name of a blob in the cache of huggingface_hub: its Git or its SHA-256 hash."""


class LinkBounds:
    """What the links of one checkpoint directory may lead to."""

    def __init__(self, directory: Path) -> None:
        self._root = Path(os.path.realpath(directory))
        above = self._root.parent
        self._blobs = above.parent / "blobs" if above.name == "snapshots" else None

    def way_out(self, path: Path) -> Path | None:
        """Where `path` really lies if that is out of bounds; None where it is within them.

        Within them are the checkpoint directory, itself a link or not, and, for a snapshot of the Hub cache
        (`snapshots/REVISION`), the files in `blobs` beside it that are named by their hash.
        """
        real = Path(os.path.realpath(path))
        if real == self._root or self._root in real.parents:
            return None
        return None if real.parent == self._blobs and _BLOB.fullmatch(real.name) else real


def link_fault(directory: Path, name: str) -> ZppError:
    """The refusal of a link that leads out of a checkpoint."""
    return invalid_error(
        f"{directory / name} leads out of the checkpoint, to {os.path.realpath(directory / name)}",
        "Remove the link, put the file itself there, or give --follow-links to copy what links lead to.",
    )
