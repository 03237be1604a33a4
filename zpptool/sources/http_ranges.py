# SPDX-License-Identifier: Apache-2.0
"""Byte ranges of files over HTTP, resumed at the last byte received. Proxies are those of the environment."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing

from zpptool.errors import ZppError

CHUNK_BYTES = 256 * 1024
TIMEOUT_S = 30.0
ATTEMPTS = 5
LOST = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)
"""What urllib raises where a server does not answer, or a connection ends."""
_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")

Check = Callable[[http.client.HTTPMessage, int], None]
"""Examines the headers of an answer and the size of the whole file; raises if it is not the file that was listed."""


def open_url(url: str, headers: dict[str, str], method: str = "GET") -> http.client.HTTPResponse:
    """Send a request, and return the answer.

    Raises:
        ZppError: (FAILURE) the server refuses it; one of `LOST`: it does not answer.
    """
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


def read_range(url: str, offset: int, nbytes: int, check: Check) -> Iterator[memoryview]:
    """Yield bytes of a file in chunks. After a lost connection reading goes on at the last byte received.

    Args:
        url: of the file.
        offset: the first byte.
        nbytes: how many.
        check: examines each answer.

    Raises:
        ZppError: (FAILURE) the server does not answer, or serves no ranges; as `check`.
    """
    end = offset + nbytes
    failed = 0
    while offset < end:
        start = offset
        try:
            for chunk in _stream(url, offset, end, check):
                offset += len(chunk)
                yield memoryview(chunk)
            lost: Exception | None = None
        except LOST as cause:
            lost = cause
        failed = failed + 1 if offset == start else 0
        if failed > ATTEMPTS:
            raise ZppError(f"{url} cannot be read: {in_a_line(lost)}", "run the same command again to resume") from lost
        if offset < end:
            time.sleep(0.1 * 2**failed)


def whole_size(url: str) -> int:
    """The size of a file whose listing has none; raises as `read_range`."""
    with closing(open_url(url, {"Range": "bytes=0-0"})) as response:
        content_range = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if content_range is None:
        raise _no_ranges(url)
    return int(content_range[2])


def in_a_line(cause: Exception | None) -> str:
    """Why a server does not answer, as text."""
    return " ".join(str(getattr(cause, "reason", None) or cause or "no bytes arrive").split())


def _stream(url: str, offset: int, end: int, check: Check) -> Iterator[bytes]:
    with closing(open_url(url, {"Range": f"bytes={offset}-{end - 1}"})) as response:
        content_range = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status != 206 or content_range is None or int(content_range[1]) != offset:
            raise _no_ranges(url)
        check(response.headers, int(content_range[2]))
        left = end - offset
        while left:
            chunk = response.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise http.client.IncompleteRead(b"", left)
            left -= len(chunk)
            yield chunk


def _no_ranges(url: str) -> ZppError:
    return ZppError(f"{url}: the server does not support range requests", "download the model, and name its directory")
