# SPDX-License-Identifier: Apache-2.0
"""Check where symbolic links in a checkpoint lead: to files of the checkpoint, to blobs of the Hub cache, or outside.

An untrusted checkpoint may link to any file of this machine, and a split copies the targets of links.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from zpptool.errors import ZppError, invalid_error

_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""Name of a blob in the cache of huggingface_hub: its Git or SHA-256 hash."""


class LinkBounds:
    """The locations that links in one checkpoint directory may lead to.

    Args:
        directory: of the checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self._root = Path(os.path.realpath(directory))
        above = self._root.parent
        self._blobs = above.parent / "blobs" if above.name == "snapshots" else None

    def outside_target(self, path: Path) -> Path | None:
        """Return the resolved path if it is out of bounds, or None.

        Within bounds are the checkpoint directory, which may itself be a link, and, for a snapshot of the Hub cache
        (`snapshots/REVISION`), the files in the sibling directory `blobs` that are named by their hash.
        """
        real = Path(os.path.realpath(path))
        if real == self._root or self._root in real.parents:
            return None
        return None if real.parent == self._blobs and _BLOB.fullmatch(real.name) else real


def link_fault(directory: Path, name: str) -> ZppError:
    """Build the error for a link that leads out of a checkpoint."""
    return invalid_error(
        f"{directory / name} leads out of the checkpoint, to {os.path.realpath(directory / name)}",
        "Remove the link, put the file itself there, or give --follow-links to copy what links lead to.",
    )
