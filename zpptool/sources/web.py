# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in a directory of a web server, read by byte ranges.

Which files there are is read from the page that the server shows for the directory; a server that shows none is asked
for the usual names. Proxies are those of the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from typing import NamedTuple

from zpptool.checkpoint.index import INDEX_NAME, MAX_INDEX_BYTES, SINGLE_NAME
from zpptool.errors import ZppError, usage_error
from zpptool.file_names import is_inner_path
from zpptool.sources.headers import in_parallel, is_weight_name
from zpptool.sources.names import UrlId
from zpptool.sources.source import RemoteFile, identity_of_listing

CHUNK_BYTES = 256 * 1024
TIMEOUT_S = 30.0
ATTEMPTS = 5
MAX_PAGE_BYTES = 16 * 1024 * 1024
USUAL_NAMES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", INDEX_NAME, SINGLE_NAME,
)  # fmt: skip
_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")
_LOST = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)


class _Facts(NamedTuple):
    """What a server says about a file: its size in bytes, and its entity tag or time of change."""

    nbytes: int | None
    tag: str


class WebSource:
    """A directory of a web server. It implements `RemoteSource`.

    Args:
        model: the URL of the directory; a version in it is compared with what the server shows now.

    Raises:
        ZppError: (USAGE) the URL has a user, a query or a fragment; (INVALID) there is no checkpoint, or it is not the
            version that is named; (FAILURE) the server does not respond.
    """

    def __init__(self, model: UrlId) -> None:
        parts = urllib.parse.urlsplit(model.url)
        if "@" in parts.netloc or parts.query:
            raise usage_error(
                f"{parts.scheme}://{parts.hostname}{parts.path} is named with a user or a query, which would be kept in"
                " manifests and logs",
                "Name the plain URL of a directory.",
            )
        self._url = model.url + "/"
        self.served = model.url
        names = self._names()
        facts = in_parallel(self._facts, names)
        found = [(name, fact) for name, fact in zip(names, facts, strict=True) if fact is not None]
        self._tags = dict(found)
        self.files = tuple(sorted(RemoteFile(name, fact.nbytes, fact.tag) for name, fact in found))
        self.identity = identity_of_listing(model, self.files)

    def begin(self, name: str, nbytes: int) -> tuple[int, bytes]:
        """See `RemoteSource`."""
        fact = self._tags[name]
        size = fact.nbytes if fact.nbytes is not None else self._size(name)
        return size, b"".join(self.read(name, 0, min(nbytes, size)))

    def read(self, name: str, offset: int, nbytes: int) -> Iterator[memoryview]:
        """See `RemoteSource`."""
        end = offset + nbytes
        failed = 0
        while offset < end:
            start = offset
            try:
                for chunk in self._stream(name, offset, end):
                    offset += len(chunk)
                    yield memoryview(chunk)
                lost: Exception | None = None
            except _LOST as cause:
                lost = cause
            failed = failed + 1 if offset == start else 0
            if failed > ATTEMPTS:
                raise ZppError(
                    f"{self._url}{name} cannot be read: {_in_a_line(lost)}", "run the same command again to resume"
                ) from lost
            if offset < end:
                time.sleep(0.1 * 2**failed)

    def _stream(self, name: str, offset: int, end: int) -> Iterator[bytes]:
        with closing(self._open(name, {"Range": f"bytes={offset}-{end - 1}"})) as response:
            content_range = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status != 206 or content_range is None or int(content_range[1]) != offset:
                raise ZppError(
                    f"{self._url}{name}: the server does not support range requests",
                    "download the model, and name its directory",
                )
            known = self._tags[name]
            now = _tag_of(response.headers)
            if (known.tag and now != known.tag) or known.nbytes not in (None, int(content_range[2])):
                raise ZppError(f"{self._url}{name} has changed while it was read", "run the same command again")
            left = end - offset
            while left:
                chunk = response.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise http.client.IncompleteRead(b"", left)
                left -= len(chunk)
                yield chunk

    def _open(self, name: str, headers: dict[str, str], method: str = "GET") -> http.client.HTTPResponse:
        url = self._url + urllib.parse.quote(name)
        request = urllib.request.Request(
            url, headers={"Accept-Encoding": "identity", "User-Agent": "zpptool", **headers}, method=method
        )
        try:
            response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as cause:
            with cause:
                raise ZppError(
                    f"{url} cannot be read: {cause.code} {cause.reason}",
                    "check the URL, and whether this machine may read it",
                ) from None
        return response

    def _names(self) -> list[str]:
        """The files of the directory, from the page that shows it, or else the usual names and those of the index."""
        try:
            with closing(self._open("", {})) as response:
                page = response.read(MAX_PAGE_BYTES).decode("utf-8", "replace")
        except _LOST as cause:
            raise ZppError(
                f"{self._url} does not respond: {_in_a_line(cause)}", "check the URL and the network"
            ) from cause
        except ZppError:
            page = ""
        parser = _Links()
        parser.feed(page)
        names = {urllib.parse.unquote(link) for link in parser.links}
        names = {name for name in names if is_inner_path(name) and "/" not in name and "?" not in name}
        return sorted(names) if "config.json" in names else sorted({*USUAL_NAMES, *self._indexed()})

    def _indexed(self) -> set[str]:
        """The weight files that the index names; none without one."""
        try:
            with closing(self._open(INDEX_NAME, {})) as response:
                content = json.loads(response.read(MAX_INDEX_BYTES))
            return {name for name in content["weight_map"].values() if is_weight_name(name) and is_inner_path(name)}
        except (ZppError, ValueError, TypeError, KeyError, AttributeError):
            return set()

    def _facts(self, name: str) -> _Facts | None:
        """What the server says about a file; None if it has none of that name."""
        try:
            with closing(self._open(name, {}, "HEAD")) as response:
                length = response.headers.get("Content-Length", "")
                return _Facts(int(length) if length.isdecimal() else None, _tag_of(response.headers))
        except ZppError:
            return None

    def _size(self, name: str) -> int:
        with closing(self._open(name, {"Range": "bytes=0-0"})) as response:
            content_range = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if content_range is None:
            raise ZppError(
                f"{self._url}{name}: the server does not support range requests",
                "download the model, and name its directory",
            )
        return int(content_range[2])


class _Links(HTMLParser):
    """Collects the targets of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for key, value in attrs if tag == "a" and key == "href" and value]


def _tag_of(headers: http.client.HTTPMessage) -> str:
    return str(headers.get("ETag") or headers.get("Last-Modified") or "")


def _in_a_line(cause: Exception | None) -> str:
    return " ".join(str(getattr(cause, "reason", None) or cause or "no bytes arrive").split())
