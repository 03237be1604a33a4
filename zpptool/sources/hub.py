# SPDX-License-Identifier: Apache-2.0
"""One commit of a model on the Hugging Face Hub, read by byte ranges.

The commit is resolved once, so that all files belong together even if the repository changes meanwhile. huggingface_hub
provides addresses, credentials and HTTP (HF_ENDPOINT, HF_TOKEN, proxies and its other settings apply); it is imported
only here and in `hub_cache`, on use.
"""

from __future__ import annotations

import importlib
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

from zpptool.errors import ZppError, usage_error
from zpptool.sources.hub_errors import translated_errors
from zpptool.sources.names import HubId
from zpptool.sources.source import RemoteFile

_log = logging.getLogger(__name__)
CHUNK_BYTES = 256 * 1024
TIMEOUT_S = 30.0
ATTEMPTS = 5
_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")


class HubSource:
    """One commit of a model repository. It implements `RemoteSource`.

    Args:
        model: the model; its revision is resolved to a commit now.
        token: for gated and private models; None for the one of HF_TOKEN or `hf auth login`.

    Raises:
        ZppError: (USAGE) huggingface_hub is not installed; (INVALID) the model does not exist or this user may not read
            it; (FAILURE) the Hub does not respond, or responds incorrectly.
    """

    def __init__(self, model: HubId, token: str | None = None) -> None:
        self._hub = huggingface_hub(model)
        self._token = token
        utils = importlib.import_module("huggingface_hub.utils")
        self._raise_for_status = utils.hf_raise_for_status
        built = utils.build_hf_headers(token=token, library_name="zpptool")
        self._headers = {**built, "Accept-Encoding": "identity"}
        self._transport_error = _transport_error(self._hub.get_session())
        with translated_errors(model, token):
            info = self._hub.HfApi(token=token).model_info(
                model.repo, revision=model.revision, files_metadata=True, timeout=TIMEOUT_S
            )
        self._asked = model
        self._repo = str(info.id or model.repo)
        self.renamed = self._repo if self._repo != model.repo else None
        """The repository's present name, where it was renamed since; else None."""
        self.commit = str(info.sha)
        self.identity = HubId(self._repo, None).at(self.commit)
        self.served = model.repo
        files = [RemoteFile(file.rfilename, file.size, str(file.blob_id or "")) for file in info.siblings or ()]
        self.files = tuple(sorted(files))
        if self.renamed:
            _log.warning(
                "%s is now called %s on the Hub: use that name, the old one may be given to another model",
                model.repo,
                self._repo,
            )

    @property
    def repo(self) -> str:
        """The repository's present name."""
        return self._repo

    def read(self, name: str, offset: int, nbytes: int) -> Iterator[memoryview]:
        """See `RemoteSource`."""
        with translated_errors(self._asked, self._token):
            yield from self._read(name, offset, nbytes)

    def begin(self, name: str, nbytes: int) -> tuple[int, bytes]:
        """See `RemoteSource`."""
        with translated_errors(self._asked, self._token):
            for attempt in range(ATTEMPTS):
                try:
                    total, chunks = self._stream(name, 0, nbytes)
                    return total, b"".join(chunks)
                except self._transport_error:
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError

    def _read(self, name: str, offset: int, nbytes: int) -> Iterator[memoryview]:
        end = offset + nbytes
        failed = 0
        while offset < end:
            start = offset
            try:
                for chunk in self._stream(name, offset, end)[1]:
                    offset += len(chunk)
                    yield memoryview(chunk)
            except self._transport_error:
                if failed == ATTEMPTS:
                    raise
            failed = failed + 1 if offset == start else 0
            if failed > ATTEMPTS:
                raise ZppError(
                    f"the Hub sends no more of {name} of {self._repo}", "run the same command again to resume"
                )
            if offset < end:
                time.sleep(0.1 * 2**failed)

    def _stream(self, name: str, offset: int, end: int) -> tuple[int, Iterator[bytes]]:
        chunks = self._request(name, offset, end)
        return int(next(chunks)), chunks

    def _request(self, name: str, offset: int, end: int) -> Iterator[Any]:
        """Yield the size of the file, then chunks of the range."""
        url = self._hub.hf_hub_url(self._repo, name, revision=self.commit)
        headers = {**self._headers, "Range": f"bytes={offset}-{end - 1}"}
        with self._hub.get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
            if response.status_code == 416:  # an empty file has no valid range
                yield 0
                return
            self._raise_for_status(response)
            content_range = _RANGE.fullmatch(response.headers.get("content-range", ""))
            if response.status_code != 206 or content_range is None or int(content_range[1]) != offset:
                raise ZppError(f"{url} does not support range requests", "download the model, and name its directory")
            yield int(content_range[2])
            left = end - offset
            for chunk in response.iter_bytes(CHUNK_BYTES):
                yield chunk[:left]
                left -= len(chunk[:left])
                if not left:  # do not read a response past the requested range
                    return


def huggingface_hub(model: HubId) -> Any:
    """The module huggingface_hub.

    Raises:
        ZppError: (USAGE) it is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as cause:
        raise usage_error(
            f"{model.repo} is not a local directory, and huggingface_hub is not installed to fetch it from the Hub",
            "pip install 'zpptool[hub]', or name a local directory",
        ) from cause


def _transport_error(client: object) -> type[Exception]:
    """Return the exception class for connection errors: huggingface_hub 1 uses httpx, 2 uses httpx2."""
    library = importlib.import_module(type(client).__module__.partition(".")[0])
    found: type[Exception] = library.TransportError
    return found
