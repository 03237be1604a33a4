# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in a directory of a web server, read by byte ranges.

Which files there are is read from the page that the server shows for the directory; a server that shows none is asked
for the usual names. Proxies are those of the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from typing import NamedTuple

from zpptool.checkpoint.index import INDEX_NAME, MAX_INDEX_BYTES, SINGLE_NAME
from zpptool.errors import ZppError, usage_error
from zpptool.file_names import is_inner_path
from zpptool.sources.headers import in_parallel, is_weight_name
from zpptool.sources.http_ranges import LOST, in_a_line, open_url, read_range, whole_size
from zpptool.sources.names import UrlId
from zpptool.sources.source import RemoteFile, identity_of_listing

MAX_PAGE_BYTES = 16 * 1024 * 1024
USUAL_NAMES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", INDEX_NAME, SINGLE_NAME,
)  # fmt: skip


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
        size = fact.nbytes if fact.nbytes is not None else whole_size(self._url_of(name))
        return size, b"".join(self.read(name, 0, min(nbytes, size)))

    def read(self, name: str, offset: int, nbytes: int) -> Iterator[memoryview]:
        """See `RemoteSource`."""
        known = self._tags[name]

        def check(headers: http.client.HTTPMessage, total: int) -> None:
            now = _tag_of(headers)
            if (known.tag and now != known.tag) or known.nbytes not in (None, total):
                raise ZppError(f"{self._url}{name} has changed while it was read", "run the same command again")

        yield from read_range(self._url_of(name), offset, nbytes, check)

    def _url_of(self, name: str) -> str:
        return self._url + urllib.parse.quote(name)

    def _open(self, name: str, method: str = "GET") -> http.client.HTTPResponse:
        return open_url(self._url_of(name), {}, method)

    def _names(self) -> list[str]:
        """The files of the directory, from the page that shows it, or else the usual names and those of the index."""
        try:
            with closing(self._open("")) as response:
                page = response.read(MAX_PAGE_BYTES).decode("utf-8", "replace")
        except LOST as cause:
            raise ZppError(
                f"{self._url} does not respond: {in_a_line(cause)}", "check the URL and the network"
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
            with closing(self._open(INDEX_NAME)) as response:
                content = json.loads(response.read(MAX_INDEX_BYTES))
            return {name for name in content["weight_map"].values() if is_weight_name(name) and is_inner_path(name)}
        except (ZppError, ValueError, TypeError, KeyError, AttributeError):
            return set()

    def _facts(self, name: str) -> _Facts | None:
        """What the server says about a file; None if it has none of that name."""
        try:
            with closing(self._open(name, "HEAD")) as response:
                length = response.headers.get("Content-Length", "")
                return _Facts(int(length) if length.isdecimal() else None, _tag_of(response.headers))
        except ZppError:
            return None


class _Links(HTMLParser):
    """Collects the targets of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for key, value in attrs if tag == "a" and key == "href" and value]


def _tag_of(headers: http.client.HTTPMessage) -> str:
    return str(headers.get("ETag") or headers.get("Last-Modified") or "")
