# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in an object store: s3://, gs:// or az://, read by byte ranges through fsspec.

fsspec and the package of each store take credentials, endpoints and proxies from the environment, as their own
documentation says (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, ...).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from zpptool.errors import ZppError, invalid_error, usage_error
from zpptool.sources.names import UrlId
from zpptool.sources.source import RemoteFile, identity_of_listing

PIECE_BYTES = 8 * 1024 * 1024
"""Bytes that one request reads into memory."""
_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "content_settings", "LastModified", "updated", "last_modified")


class _Store(NamedTuple):
    """How a scheme is read: fsspec's name of it, and the package that it needs. The extra has the scheme's name."""

    protocol: str
    package: str


STORES = {"s3": _Store("s3", "s3fs"), "gs": _Store("gs", "gcsfs"), "az": _Store("az", "adlfs")}


class ObjectSource:
    """A prefix in an object store. It implements `RemoteSource`.

    Args:
        model: the URL of the prefix; a version in it is compared with what the store lists now.

    Raises:
        ZppError: (USAGE) the package for this store is not installed; (INVALID) there is no checkpoint, or it is not
            the version that is named; (FAILURE) the store does not respond.
    """

    def __init__(self, model: UrlId) -> None:
        scheme, _, path = model.url.partition("://")
        self._root = path
        self.served = model.url
        self._system = _file_system(scheme, model.url)
        listed = self._asked(lambda: self._system.find(path, detail=True), model.url)
        prefix = path.strip("/") + "/"
        rows = {name.removeprefix("/").removeprefix(prefix): info for name, info in listed.items()}
        self.files = tuple(sorted(RemoteFile(name, int(info["size"]), _tag(info)) for name, info in rows.items()))
        self._sizes = {file.name: file.nbytes or 0 for file in self.files}
        self.identity = identity_of_listing(model, self.files)

    def begin(self, name: str, nbytes: int) -> tuple[int, bytes]:
        """See `RemoteSource`."""
        size = self._sizes[name]
        return size, b"".join(self.read(name, 0, min(nbytes, size)))

    def read(self, name: str, offset: int, nbytes: int) -> Iterator[memoryview]:
        """See `RemoteSource`. The package of the store repeats a request that failed."""
        path, end = f"{self._root}/{name}", offset + nbytes
        while offset < end:
            stop = min(end, offset + PIECE_BYTES)
            ask = partial(self._system.cat_file, path, start=offset, end=stop)  # by name: s3fs has another order
            piece = self._asked(ask, path)
            if len(piece) != stop - offset:
                raise ZppError(f"{self.served}/{name} has changed while it was read", "run the same command again")
            yield memoryview(piece)
            offset = stop

    def _asked(self, request: Callable[[], Any], what: str) -> Any:
        """The answer of the store; its own errors are of many kinds, and each is a fault of the request."""
        try:
            return request()
        except ZppError:
            raise
        except FileNotFoundError as cause:
            raise invalid_error(f"{what} does not exist, or you may not read it", "Check the URL.") from cause
        except PermissionError as cause:
            raise invalid_error(
                f"{what} may not be read with the credentials of the environment: {cause}", "Check the credentials."
            ) from cause
        except Exception as cause:
            first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise ZppError(f"{what} cannot be read: {first}", "run the same command again to resume") from cause


def _file_system(scheme: str, url: str) -> Any:
    store = STORES[scheme]
    try:
        importlib.import_module(store.package)
        return importlib.import_module("fsspec").filesystem(store.protocol)
    except ImportError as cause:
        raise usage_error(
            f"{url} is read through {store.package}, which is not installed", f"pip install 'zpptool[{scheme}]'"
        ) from cause


def _tag(info: dict[str, Any]) -> str:
    """What the store says about the content of an object."""
    return next((str(info[key]) for key in _TAGS if info.get(key)), "")
