# SPDX-License-Identifier: Apache-2.0
"""The interface of a place beyond this machine that holds a checkpoint: list its files, read ranges of them.

What a source lists belongs together: it is one commit, or one state of a directory. A file that has changed since is
refused when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from zpptool.errors import invalid_error
from zpptool.sources.names import UrlId


class RemoteFile(NamedTuple):
    """One file of a source.

    Attributes:
        name: its path relative to the checkpoint, with slashes.
        nbytes: its size in bytes; None where the listing has none.
        digest: what the place itself says about its content (a hash, an entity tag); empty for nothing.
    """

    name: str
    nbytes: int | None
    digest: str


class RemoteSource(Protocol):
    """A checkpoint beyond this machine.

    Attributes:
        identity: names the place and the state of its files, for example `hf://org/name@commit`.
        served: what requests call the model by default.
        files: the files, ordered by name.
    """

    identity: str
    served: str
    files: tuple[RemoteFile, ...]

    def begin(self, name: str, nbytes: int) -> tuple[int, bytes]:
        """Return the size of a file, and its first `nbytes` bytes, or all of them if it is shorter."""
        ...

    def read(self, name: str, offset: int, nbytes: int) -> Iterator[memoryview]:
        """Yield bytes of a file in chunks. After a lost connection reading goes on at the last byte received.

        A chunk is valid only until the next one is requested.

        Raises:
            ZppError: (FAILURE) the place does not answer, does not serve ranges, or the file has changed.
        """
        ...


def identity_of_listing(model: UrlId, files: Sequence[RemoteFile]) -> str:
    """The identity of a directory that has no versions of its own: its URL and a digest of its listing.

    The digest is of names, sizes, and what the place says about each file's content.

    Raises:
        ZppError: (INVALID) it holds no checkpoint, or is not in the state that the user has named.
    """
    if not any(file.name == "config.json" for file in files):
        raise invalid_error(f"{model.url} holds no checkpoint: there is no config.json", "Check the URL.")
    rows = sorted([file.name, file.nbytes, file.digest] for file in files)
    version = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:32]
    if model.version not in (None, version):
        raise invalid_error(
            f"{model.url} has changed since: its files are not those of version {model.version}",
            "Name the URL without a version, and plan again.",
        )
    return f"{model.url}#{version}"
