# SPDX-License-Identifier: Apache-2.0
"""Read a checkpoint on the Hugging Face Hub: a split is planned from its headers, and tensors are read by byte range.

The headers and the small files are downloaded into a temporary directory. Each weight file there has its real size but
is sparse after its header, so the code that plans a local checkpoint works unchanged. All reads use one commit, which
is resolved once, so that the files belong together even if the repository changes meanwhile. huggingface_hub provides
addresses, credentials and HTTP (HF_ENDPOINT, HF_TOKEN and its other settings apply); it is imported only here, on use.
"""

from __future__ import annotations

import importlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from zpptool.checkpoint.header import LENGTH_BYTES, TensorInfo, json_length
from zpptool.checkpoint.index import INDEX_NAME
from zpptool.checkpoint.smallfiles import MAX_SMALL_BYTES, is_small_name
from zpptool.checkpoint.split import Origin
from zpptool.checkpoint.streaming import CHUNK_BYTES
from zpptool.errors import ZppError, invalid_error, usage_error
from zpptool.file_names import is_inner_path, named_twice

FIRST_BYTES = 128 * 1024
"""Bytes of the first request for each weight file; most headers are shorter."""
CONNECTIONS = 8
TIMEOUT_S = 30.0
ATTEMPTS = 5
_ID = re.compile(r"(?P<scheme>hf:/{1,2})?(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")
Item = TypeVar("Item")
Made = TypeVar("Made")


class HubId(NamedTuple):
    """A model on the Hub. `revision` is a branch, a tag or a commit; None for the main branch."""

    repo: str
    revision: str | None


@dataclass(frozen=True)
class Source:
    """A checkpoint, on this machine or on the Hub.

    Attributes:
        name: the name for display.
        directory: the checkpoint, or for a model on the Hub a temporary directory with its headers and small files.
        origin: identifies the commit and reads samples; None for a local checkpoint.
        read: reads bytes of a weight file in `directory` from the Hub; None for a local checkpoint.
    """

    name: str
    directory: Path
    origin: Origin | None = None
    read: Callable[[Path, int, int], Iterator[memoryview]] | None = None


@contextmanager
def open_source(text: str) -> Iterator[Source]:
    """Open the checkpoint that a user named: a directory, or a model on the Hub. Raises as `open_hub` does."""
    model = hub_id(text)
    if model is None and text.startswith("hf:") and not os.path.exists(text):
        raise usage_error(f"{text} names no model on the Hub", "write hf://org/name, or hf://org/name@revision")
    if model is None:
        yield Source(text, Path(text))
        return
    with open_hub(model) as source:
        yield source


def hub_id(text: str) -> HubId | None:
    """Parse `org/name`, `org/name@revision` or `hf://org/name@revision`; None if the text is neither.

    Without `hf://`, an existing local path of that name takes precedence, and the result is None.
    """
    match = _ID.fullmatch(text)
    if match is None or (match["scheme"] is None and os.path.exists(text)):
        return None
    return HubId(match["repo"], match["revision"])


@contextmanager
def open_hub(model: HubId) -> Iterator[Source]:
    """Download headers and small files into a temporary directory, and yield the checkpoint.

    Raises:
        ZppError: (USAGE) huggingface_hub is not installed; (INVALID) the model does not exist or this user may not read
            it; (FAILURE) the Hub does not respond, or responds incorrectly.
    """
    with tempfile.TemporaryDirectory(prefix="zpp-hub-") as folder, _translated_errors(model):
        directory = Path(folder, model.repo)
        directory.mkdir(parents=True)
        repository = _Repository(model)
        _fill(directory, repository)

        def read(file: Path, offset: int, nbytes: int) -> Iterator[memoryview]:
            with _translated_errors(model):
                yield from repository.read(file.relative_to(directory).as_posix(), offset, nbytes)

        def read_samples(samples: list[TensorInfo]) -> list[bytes]:
            return _in_parallel(lambda sample: b"".join(read(sample.file, sample.offset, sample.nbytes)), samples)

        name = f"hf://{model.repo}@{repository.commit}"
        yield Source(name, directory, Origin(name, read_samples), read)


class _Repository:
    """One commit of a model repository, with ranged reads of its files."""

    def __init__(self, model: HubId) -> None:
        try:
            self._hub = importlib.import_module("huggingface_hub")
            utils = importlib.import_module("huggingface_hub.utils")
        except ImportError as cause:
            raise usage_error(
                f"{model.repo} is not a local directory, and huggingface_hub is not installed to fetch it from the Hub",
                "pip install 'zpptool[hub]', or name a local directory",
            ) from cause
        self._raise_for_status = utils.hf_raise_for_status
        self._headers = {**utils.build_hf_headers(library_name="zpptool"), "Accept-Encoding": "identity"}
        self._transport_error = _transport_error(self._hub.get_session())
        info = self._hub.HfApi().model_info(model.repo, revision=model.revision, timeout=TIMEOUT_S)
        self._repo = model.repo
        self.commit = str(info.sha)
        self.names = [sibling.rfilename for sibling in info.siblings or ()]

    def read(self, name: str, offset: int, nbytes: int) -> Iterator[memoryview]:
        """Yield bytes of a file in chunks; after a lost connection, reading resumes at the last byte received."""
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

    def begin(self, name: str, nbytes: int) -> tuple[int, bytes]:
        """Return the size of a file, and its first `nbytes` bytes, or all of them if it is shorter."""
        for attempt in range(ATTEMPTS):
            try:
                total, chunks = self._stream(name, 0, nbytes)
                return total, b"".join(chunks)
            except self._transport_error:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

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


def _fill(directory: Path, repository: _Repository) -> None:
    outside = [name for name in repository.names if not is_inner_path(name)]
    if outside:
        raise invalid_error(
            f"the repository names the file {outside[0]!r}, which is outside it or not a valid file name"
        )
    twice = named_twice(repository.names)
    if twice is not None:
        raise invalid_error(f"the repository names the file {twice} twice")
    for name in repository.names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
    small = [name for name in repository.names if is_small_name(name)]
    index = [name for name in repository.names if name == INDEX_NAME]
    _in_parallel(lambda name: _fetch_small(directory / name, name, repository), [*small, *index])
    weights = [name for name in repository.names if _may_hold_weights(name)]
    for name in set(repository.names) - {*small, *index, *weights}:
        (directory / name).touch()
    _in_parallel(lambda name: _fetch_header(directory / name, name, repository), weights)


def _may_hold_weights(name: str) -> bool:
    """Return whether the header of a file is needed; for all others `read_index` needs only their names."""
    return name.endswith(".safetensors") and "/" not in name and not name.startswith(("consolidated", "adapter"))


def _fetch_small(path: Path, name: str, repository: _Repository) -> None:
    total, start = repository.begin(name, FIRST_BYTES)
    with path.open("wb") as stream:
        stream.write(start)
        if total > MAX_SMALL_BYTES:
            stream.truncate(total)
        elif total > len(start):
            for chunk in repository.read(name, len(start), total - len(start)):
                stream.write(chunk)
    os.utime(path, (0, 0))


def _fetch_header(path: Path, name: str, repository: _Repository) -> None:
    """Create a sparse file with the size of the one on the Hub and only its header as content."""
    total, start = repository.begin(name, FIRST_BYTES)
    length = LENGTH_BYTES + json_length(path, start[:LENGTH_BYTES], total)
    if length > len(start):
        start += b"".join(repository.read(name, len(start), length - len(start)))
    with path.open("wb") as stream:
        stream.write(start[:length])
        stream.truncate(total)


def _in_parallel(fetch: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(fetch, items))


def _transport_error(client: object) -> type[Exception]:
    """Return the exception class for connection errors: huggingface_hub 1 uses httpx, 2 uses httpx2."""
    library = importlib.import_module(type(client).__module__.partition(".")[0])
    found: type[Exception] = library.TransportError
    return found


@contextmanager
def _translated_errors(model: HubId) -> Iterator[None]:
    """Translate errors of huggingface_hub and its HTTP client into ZppErrors."""
    try:
        yield
    except ZppError:
        raise
    except Exception as cause:
        known = _zpp_error_for(model, cause)
        if known is None:
            raise
        raise known from cause


def _zpp_error_for(model: HubId, cause: Exception) -> ZppError | None:
    kinds = {kind.__name__ for kind in type(cause).__mro__}
    if "GatedRepoError" in kinds:
        return invalid_error(
            f"{model.repo} is gated: its terms have to be accepted first", "accept them on the Hub, and set HF_TOKEN"
        )
    if "RepositoryNotFoundError" in kinds:
        return invalid_error(
            f"{model.repo} is neither a local directory nor a model on the Hub that you may read",
            "check the name; for a private model set HF_TOKEN",
        )
    if "RevisionNotFoundError" in kinds:
        return invalid_error(f"{model.repo} has no revision {model.revision}")
    if "HFValidationError" in kinds:
        return invalid_error(f"{model.repo} is neither a local directory nor a valid name of a model on the Hub")
    if kinds & {"HfHubHTTPError", "TransportError", "OfflineModeIsEnabled", "LocalTokenNotFoundError"}:
        first = str(cause).strip().splitlines() or [type(cause).__name__]
        return ZppError(
            f"{model.repo} is not a local directory, and fetching it from the Hub failed: {first[0]}",
            "name a local directory, or run the same command again to resume",
        )
    return None
