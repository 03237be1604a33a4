# SPDX-License-Identifier: Apache-2.0
"""What has been proven, kept for the next start: one small file for each proof, in the user's cache directory.

A file is named after a digest of the facts that the proof depends on, and contains them. It counts only if it belongs
to this user alone and contains exactly these facts; anything else means that the proof is made again. Where no file can
be written, a proof counts for this process.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from zpptool.errors import ZppError
from zpptool.ownership import distrusted_directory
from zpptool.regular_file import read_regular

Facts = Mapping[str, str]
_LIMIT_BYTES = 1 << 16
_in_this_process: set[bytes] = set()


def is_proven(facts: Facts) -> bool:
    """Whether a proof with exactly these facts was recorded."""
    content = _content(facts)
    if content in _in_this_process:
        return True
    directory = _directory()
    try:
        if distrusted_directory(directory) is not None:
            return False
        return read_regular(directory / _name(content), _LIMIT_BYTES, "record of a proof") == content
    except (OSError, ZppError):
        return False


def record_proof(facts: Facts) -> None:
    """Record a proof: for this process, and for later ones where a file can be written."""
    content = _content(facts)
    _in_this_process.add(content)
    directory = _directory()
    with suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if distrusted_directory(directory) is None:
            _write(directory / _name(content), content)


def _write(path: Path, content: bytes) -> None:
    """Write the file whole or not at all, whatever else writes it meanwhile."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _directory() -> Path:
    """The directory of the records. A relative XDG_CACHE_HOME is ignored, as its specification demands."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "zpptool" / "proofs"


def _content(facts: Facts) -> bytes:
    return json.dumps(dict(facts), sort_keys=True, indent=1).encode()


def _name(content: bytes) -> str:
    return f"{sha256(content).hexdigest()}.json"
