# SPDX-License-Identifier: Apache-2.0
"""A checkpoint on the Hugging Face Hub: planned from its headers alone, read in the byte ranges that are asked for.

The headers and the small files are put into a directory in which each weight file has its true length and is a hole
from its header on, so that whatever plans a checkpoint on disk plans this one. All reads are of one commit, looked up
once: what is fetched belongs together even if the repository changes meanwhile. huggingface_hub knows addresses,
credentials and transport (HF_ENDPOINT, HF_TOKEN and its other settings hold); it is imported only here, when used.
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
"""Asked of each weight file at first: most headers are shorter."""
CONNECTIONS = 8
TIMEOUT_S = 30.0
ATTEMPTS = 5
_ID = re.compile(r"(?P<scheme>hf:/{1,2})?(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")
Item = TypeVar("Item")
Made = TypeVar("Made")


class HubId(NamedTuple):
    """A model on the Hub; `revision` is a branch, a tag or a commit, None for the main branch."""

    repo: str
    revision: str | None


@dataclass(frozen=True)
class Source:
    """A checkpoint, on this machine or on the Hub.

    Attributes:
        name: as a user knows it.
        directory: of the checkpoint, or of what stands for it while it is open.
        origin: names the commit, and reads samples; None on this machine.
        read: reads bytes of a weight file in `directory` from the Hub; None on this machine.
    """

    name: str
    directory: Path
    origin: Origin | None = None
    read: Callable[[Path, int, int], Iterator[memoryview]] | None = None


@contextmanager
def open_source(text: str) -> Iterator[Source]:
    """The checkpoint that a user names: a directory, or a model on the Hub; raises as `open_hub` does."""
    model = hub_id(text)
    if model is None and text.startswith("hf:") and not os.path.exists(text):
        raise usage_error(f"{text} names no model on the Hub", "write hf://org/name, or hf://org/name@revision")
    if model is None:
        yield Source(text, Path(text))
        return
    with open_hub(model) as source:
        yield source


def hub_id(text: str) -> HubId | None:
    """The model that `org/name`, `org/name@revision` or `hf://org/name@revision` names, or None.

    A directory of that name goes before a model without `hf://`.
    """
    match = _ID.fullmatch(text)
    if match is None or (match["scheme"] is None and os.path.exists(text)):
        return None
    return HubId(match["repo"], match["revision"])


@contextmanager
def open_hub(model: HubId) -> Iterator[Source]:
    """Fetch headers and small files, and yield what stands for the checkpoint.

    Raises:
        ZppError: (USAGE) huggingface_hub is not installed; (INVALID) there is no such model, or not for this user;
            (FAILURE) the Hub does not answer, or not as it should.
    """
    with tempfile.TemporaryDirectory(prefix="zpp-hub-") as folder, _as_faults(model):
        directory = Path(folder, model.repo)
        directory.mkdir(parents=True)
        repository = _Repository(model)
        _fill(directory, repository)

        def read(file: Path, offset: int, nbytes: int) -> Iterator[memoryview]:
            with _as_faults(model):
                yield from repository.read(file.relative_to(directory).as_posix(), offset, nbytes)

        def read_samples(samples: list[TensorInfo]) -> list[bytes]:
            return _at_once(lambda own: b"".join(read(own.file, own.offset, own.nbytes)), samples)

        name = f"hf://{model.repo}@{repository.commit}"
        yield Source(name, directory, Origin(name, read_samples), read)


class _Repository:
    """One commit of a model repository, and how to read ranges of its files."""

    def __init__(self, model: HubId) -> None:
        try:
            self._hub = importlib.import_module("huggingface_hub")
            utils = importlib.import_module("huggingface_hub.utils")
        except ImportError as cause:
            raise usage_error(
                f"{model.repo} is no directory here, and huggingface_hub is not installed to fetch it from the Hub",
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
        """Bytes of a file, in chunks; goes on where a connection broke."""
        end = offset + nbytes
        failed = 0
        while offset < end:
            begun = offset
            try:
                for chunk in self._stream(name, offset, end)[1]:
                    offset += len(chunk)
                    yield memoryview(chunk)
            except self._transport_error:
                if failed == ATTEMPTS:
                    raise
            failed = failed + 1 if offset == begun else 0
            if failed > ATTEMPTS:
                raise ZppError(f"the Hub sends no more of {name} of {self._repo}", "run the same again to go on")
            if offset < end:
                time.sleep(0.1 * 2**failed)

    def begin(self, name: str, nbytes: int) -> tuple[int, bytes]:
        """The length of a file, and its first bytes: `nbytes`, or all that it has."""
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
        """The length of the file, then chunks of the range."""
        url = self._hub.hf_hub_url(self._repo, name, revision=self.commit)
        headers = {**self._headers, "Range": f"bytes={offset}-{end - 1}"}
        with self._hub.get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
            if response.status_code == 416:  # nothing can be asked of an empty file
                yield 0
                return
            self._raise_for_status(response)
            told = _RANGE.fullmatch(response.headers.get("content-range", ""))
            if response.status_code != 206 or told is None or int(told[1]) != offset:
                raise ZppError(f"{url} does not answer range requests", "download the model, and name its directory")
            yield int(told[2])
            left = end - offset
            for chunk in response.iter_bytes(CHUNK_BYTES):
                yield chunk[:left]
                left -= len(chunk[:left])
                if not left:  # an answer that does not end is not read on
                    return


def _fill(directory: Path, repository: _Repository) -> None:
    outside = [name for name in repository.names if not is_inner_path(name)]
    if outside:
        raise invalid_error(f"the repository names the file {outside[0]!r}, which lies outside it or is no file's name")
    twice = named_twice(repository.names)
    if twice is not None:
        raise invalid_error(f"the repository names the file {twice} twice")
    for name in repository.names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
    small = [name for name in repository.names if is_small_name(name)]
    index = [name for name in repository.names if name == INDEX_NAME]
    _at_once(lambda name: _fetch_small(directory / name, name, repository), [*small, *index])
    weights = [name for name in repository.names if _may_hold_weights(name)]
    for name in set(repository.names) - {*small, *index, *weights}:
        (directory / name).touch()
    _at_once(lambda name: _fetch_header(directory / name, name, repository), weights)


def _may_hold_weights(name: str) -> bool:
    """Whether its header is wanted: of the others `read_index` needs to know only that they are there."""
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
    """A file as long as the one on the Hub, with its header and no more: the rest is a hole."""
    total, start = repository.begin(name, FIRST_BYTES)
    length = LENGTH_BYTES + json_length(path, start[:LENGTH_BYTES], total)
    if length > len(start):
        start += b"".join(repository.read(name, len(start), length - len(start)))
    with path.open("wb") as stream:
        stream.write(start[:length])
        stream.truncate(total)


def _at_once(fetch: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(fetch, items))


def _transport_error(client: object) -> type[Exception]:
    """The error of a connection that breaks: huggingface_hub 1 speaks through httpx, 2 through httpx2."""
    library = importlib.import_module(type(client).__module__.partition(".")[0])
    found: type[Exception] = library.TransportError
    return found


@contextmanager
def _as_faults(model: HubId) -> Iterator[None]:
    """Errors of huggingface_hub and its transport, as a user should read them."""
    try:
        yield
    except ZppError:
        raise
    except Exception as cause:
        known = _known_fault(model, cause)
        if known is None:
            raise
        raise known from cause


def _known_fault(model: HubId, cause: Exception) -> ZppError | None:
    kinds = {kind.__name__ for kind in type(cause).__mro__}
    if "GatedRepoError" in kinds:
        return invalid_error(
            f"{model.repo} is open only to those who accept its terms", "accept them, and set HF_TOKEN"
        )
    if "RepositoryNotFoundError" in kinds:
        return invalid_error(
            f"{model.repo} is neither a directory here nor a model on the Hub that you may see",
            "check the name; for a private model set HF_TOKEN",
        )
    if "RevisionNotFoundError" in kinds:
        return invalid_error(f"{model.repo} has no revision {model.revision}")
    if "HFValidationError" in kinds:
        return invalid_error(f"{model.repo} is neither a directory here nor a name that a model on the Hub can have")
    if kinds & {"HfHubHTTPError", "TransportError", "OfflineModeIsEnabled", "LocalTokenNotFoundError"}:
        first = str(cause).strip().splitlines() or [type(cause).__name__]
        return ZppError(
            f"{model.repo} is no directory here, and fetching it from the Hub failed: {first[0]}",
            "name a local directory, or run the same again to go on",
        )
    return None
