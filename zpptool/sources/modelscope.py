# SPDX-License-Identifier: Apache-2.0
"""A public model on ModelScope, read by byte ranges through its HTTP API; its own package is not needed.

A repository is listed once. Each file is then read at the commit that the listing gives for it (the last one that
changed it), so what is read belongs together even if the branch moves. The listing has no commit of the whole: a digest
of names, sizes and hashes takes its place, as with a directory of a web server.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from zpptool.errors import ZppError, invalid_error, usage_error
from zpptool.file_names import is_inner_path
from zpptool.sources.http_ranges import LOST, in_a_line, open_url, read_range
from zpptool.sources.names import MODELSCOPE, UrlId
from zpptool.sources.source import RemoteFile, identity_of_listing

ENDPOINT_VARIABLE = "MODELSCOPE_ENDPOINT"
DEFAULT_ENDPOINT = "https://modelscope.cn"
DEFAULT_REVISION = "master"
MAX_LISTING_BYTES = 16 << 20
_NAME = re.compile(rf"{MODELSCOPE}://(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?")


class ModelScopeSource:
    """One state of a model repository. It implements `RemoteSource`.

    Args:
        model: the URL `modelscope://org/name@revision`; a version in it is compared with the listing.

    Raises:
        ZppError: (USAGE) that is no name; (INVALID) there is no such model or revision, it holds no checkpoint, or is
            not in the state that is named; (FAILURE) ModelScope does not answer, or answers incorrectly.
    """

    def __init__(self, model: UrlId) -> None:
        match = _NAME.fullmatch(model.url)
        if match is None:
            raise usage_error(f"{model.url} names no model on ModelScope", f"Write {MODELSCOPE}://org/name@revision.")
        self.served = match["repo"]
        endpoint = os.environ.get(ENDPOINT_VARIABLE, "").rstrip("/") or DEFAULT_ENDPOINT
        self._api = f"{endpoint}/api/v1/models/{match['repo']}/repo"
        revision = match["revision"] or DEFAULT_REVISION
        self._commits: dict[str, str] = {}
        files = []
        for row in self._listing(model, revision):
            name, size = row["Path"], row.get("Size")
            if not isinstance(name, str) or not is_inner_path(name):
                raise invalid_error(f"{model.url} lists a file with the name {str(name)[:80]!r}, which is not valid")
            commit = row.get("Revision")
            self._commits[name] = commit if isinstance(commit, str) and commit else revision
            digest = row.get("Sha256") or commit or ""
            files.append(RemoteFile(name, size if isinstance(size, int) else None, str(digest)))
        self.files = tuple(sorted(files))
        self._sizes = {file.name: file.nbytes for file in files}
        self.identity = identity_of_listing(model, self.files)

    def begin(self, name: str, nbytes: int) -> tuple[int, bytes]:
        """See `RemoteSource`."""
        size = self._sizes[name]
        if size is None:
            raise ZppError(f"ModelScope lists {name} of {self.served} without a size", "run the same command again")
        return size, b"".join(self.read(name, 0, min(nbytes, size)))

    def read(self, name: str, offset: int, nbytes: int) -> Iterator[memoryview]:
        """See `RemoteSource`."""

        def check(_headers: http.client.HTTPMessage, total: int) -> None:
            if total != self._sizes[name]:
                raise ZppError(f"{name} of {self.served} has changed while it was read", "run the same command again")

        query = urllib.parse.urlencode({"Revision": self._commits[name], "FilePath": name})
        yield from read_range(f"{self._api}?{query}", offset, nbytes, check)

    def _listing(self, model: UrlId, revision: str) -> list[dict[str, Any]]:
        """The rows of all files, without those of folders."""
        query = urllib.parse.urlencode({"Revision": revision, "Recursive": "true"})
        try:
            with closing(open_url(f"{self._api}/files?{query}", {})) as response:
                content = json.loads(response.read(MAX_LISTING_BYTES))
            code, message = content.get("Code"), content.get("Message")
            rows = (content.get("Data") or {}).get("Files") or []
            files = [row for row in rows if row["Type"] != "tree"]
        except LOST as cause:
            raise ZppError(f"ModelScope does not answer: {in_a_line(cause)}", "check the network") from cause
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as cause:
            raise ZppError("ModelScope answers with something else than a list of files", "try again later") from cause
        except ZppError as cause:
            raise invalid_error(
                f"{model.url} cannot be listed: {cause.message}",
                "Check the name and the revision. Private models are not read: download them, and name the directory.",
            ) from cause
        if code != 200 or not files:
            raise invalid_error(f"{model.url} has no files: {str(message)[:200]}", "Check the name and the revision.")
        return files
