# SPDX-License-Identifier: Apache-2.0
"""The routes of OpenAI's Batch API: `/v1/files` and `/v1/batches`.

A client sees only what belongs to its own API key.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from zpptool.batch.api.objects import BatchObject, FileObject, with_status
from zpptool.batch.api.store import BatchStore, new_id
from zpptool.batch.api.uploads import bad_request, receive_upload
from zpptool.batch.api.worker import FILE_S, BatchWorker
from zpptool.batch.file_operations import FileOperations
from zpptool.batch.request_line import URLS
from zpptool.serve.api_keys import KEY_NAME
from zpptool.serve.http_errors import INVALID_REQUEST, Refusal, body_too_large
from zpptool.serve.media_types import media_type_refusal

WINDOW = "24h"
WINDOW_S = 24 * 3600
MAX_BODY_BYTES = 64 << 10
MAX_OPEN_BATCHES = 1000
MAX_PAGE, DEFAULT_PAGE = 100, 20
MAX_FILES_PAGE = 10_000
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, FILE_S
MAX_METADATA = 16
_PURPOSE = "batch"

Handler = Callable[[Request], Awaitable[Response]]


class BatchRoutes:
    """The routes.

    Args:
        store: of files and batches.
        worker: is woken by a new batch.
        files: the file operations.
        now: seconds since the epoch.
    """

    def __init__(
        self, store: BatchStore, worker: BatchWorker, files: FileOperations, now: Callable[[], float] = time.time
    ) -> None:
        self._store, self._worker, self._files, self._now = store, worker, files, now

    def routes(self) -> list[Route]:
        """The routes, for an ASGI application."""
        return [
            Route("/v1/files", _refusing(self.upload), methods=["POST"]),
            Route("/v1/files", _refusing(self.list_files), methods=["GET"]),
            Route("/v1/files/{id}", _refusing(self.get_file), methods=["GET"]),
            Route("/v1/files/{id}", _refusing(self.delete_file), methods=["DELETE"]),
            Route("/v1/files/{id}/content", _refusing(self.content), methods=["GET"]),
            Route("/v1/batches", _refusing(self.create), methods=["POST"]),
            Route("/v1/batches", _refusing(self.list_batches), methods=["GET"]),
            Route("/v1/batches/{id}", _refusing(self.get_batch), methods=["GET"]),
            Route("/v1/batches/{id}/cancel", _refusing(self.cancel), methods=["POST"]),
        ]

    async def upload(self, request: Request) -> Response:
        """Store a file of requests."""
        incoming = self._store.incoming()
        upload = await receive_upload(request, incoming, self._files)
        now = int(self._now())
        try:
            if upload.fields.get("purpose") != _PURPOSE:
                raise bad_request(f"purpose: only {_PURPOSE} is possible", "purpose")
            seconds = upload.fields.get("expires_after[seconds]")
            expires_s = _expiry(upload.fields.get("expires_after[anchor]"), seconds)
        except Refusal:
            incoming.unlink()
            raise
        file = FileObject(
            id=new_id("file-"),
            bytes=upload.nbytes,
            created_at=now,
            expires_at=now + expires_s,
            filename=upload.filename,
            purpose=_PURPOSE,
            owner=_owner(request),
        )
        await asyncio.to_thread(self._store.add_file, file, incoming)
        return JSONResponse(file.shown())

    async def list_files(self, request: Request) -> Response:
        """The client's files, the newest first."""
        files = self._store.files_of(_owner(request))
        purpose = request.query_params.get("purpose")
        found = [file for file in files if purpose in (None, file.purpose)]
        return _page(request, found, MAX_FILES_PAGE, MAX_FILES_PAGE)

    async def get_file(self, request: Request) -> Response:
        """One file."""
        return JSONResponse(self._file(request).shown())

    async def delete_file(self, request: Request) -> Response:
        """Delete a file, unless a batch still needs it."""
        file = self._file(request)
        batches = self._store.batches_of(file.owner)
        if any(batch.is_open and batch.input_file_id == file.id for batch in batches):
            raise Refusal(409, f"{file.id} is the input of a batch in progress", kind=INVALID_REQUEST, code="in_use")
        await asyncio.to_thread(self._store.remove_file, file.id)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        """A file's content."""
        file = self._file(request)
        headers = {"x-content-type-options": "nosniff"}
        return FileResponse(self._store.content(file.id), media_type="application/octet-stream", headers=headers)

    async def create(self, request: Request) -> Response:
        """Create a batch."""
        body = await _body(request)
        owner = _owner(request)
        file = self._store.file(str(body.get("input_file_id")), owner)
        if file is None or file.purpose != _PURPOSE:
            raise bad_request("input_file_id: there is no such file for batches", "input_file_id")
        if body.get("endpoint") not in URLS:
            raise bad_request(f"endpoint: it is one of {', '.join(URLS)}", "endpoint")
        if body.get("completion_window") != WINDOW:
            raise bad_request(f"completion_window: only {WINDOW} is possible", "completion_window")
        metadata = body.get("metadata")
        if metadata is not None and not _is_metadata(metadata):
            raise bad_request(f"metadata: at most {MAX_METADATA} texts by name", "metadata")
        expiry = body.get("output_expires_after")
        output_expires_s = None
        if expiry is not None:
            if not isinstance(expiry, dict):
                raise bad_request("output_expires_after: not an object", "output_expires_after")
            output_expires_s = _expiry(expiry.get("anchor"), expiry.get("seconds"))
        if sum(batch.is_open for batch in self._store.batches_of(None)) >= MAX_OPEN_BATCHES:
            raise Refusal(429, f"{MAX_OPEN_BATCHES} batches are in progress; try later", code="too_many_batches")
        now = int(self._now())
        batch = BatchObject(
            id=new_id("batch_"),
            endpoint=body["endpoint"],
            input_file_id=file.id,
            created_at=now,
            expires_at=now + WINDOW_S,
            owner=owner,
            metadata=metadata,
            output_expires_s=output_expires_s,
        )
        await asyncio.to_thread(self._store.put_batch, batch)
        self._worker.wake()
        return JSONResponse(batch.shown())

    async def list_batches(self, request: Request) -> Response:
        """The client's batches, the newest first."""
        return _page(request, self._store.batches_of(_owner(request)), DEFAULT_PAGE, MAX_PAGE)

    async def get_batch(self, request: Request) -> Response:
        """One batch."""
        return JSONResponse(self._batch(request).shown())

    async def cancel(self, request: Request) -> Response:
        """Cancel a batch: the lines that have a result keep it."""
        batch = self._batch(request)
        if batch.status not in ("validating", "in_progress", "cancelling"):
            raise Refusal(
                409, f"{batch.id} is {batch.status}, and cannot be cancelled", kind=INVALID_REQUEST, code="not_open"
            )
        now = int(self._now())

        def cancelling(current: BatchObject) -> BatchObject:
            if current.status not in ("validating", "in_progress"):
                return current
            is_waiting = current.status == "validating" and self._worker.current != current.id
            stopped = with_status(current, "cancelling", now)
            return with_status(stopped, "cancelled", now) if is_waiting else stopped

        return JSONResponse((await asyncio.to_thread(self._store.change_batch, batch.id, cancelling)).shown())

    def _file(self, request: Request) -> FileObject:
        file_id: str = request.path_params["id"]
        file = self._store.file(file_id, _owner(request))
        if file is None:
            raise _not_found("file", file_id)
        return file

    def _batch(self, request: Request) -> BatchObject:
        batch_id: str = request.path_params["id"]
        batch = self._store.batch(batch_id, _owner(request))
        if batch is None:
            raise _not_found("batch", batch_id)
        return batch


def _refusing(handler: Handler) -> Handler:
    """A handler whose refusals, and those of the disk, are responses; it gets bodies of its path's media type only."""

    async def answer(request: Request) -> Response:
        wrong_type = media_type_refusal(request.url.path, request.scope["headers"])
        if wrong_type is not None:
            return wrong_type.response()
        try:
            return await handler(request)
        except Refusal as refusal:
            return refusal.response()
        except OSError as cause:
            message = f"the directory of batches cannot be written: {cause.strerror}"
            return Refusal(507, message, code="storage_failed").response()

    return answer


def _owner(request: Request) -> str:
    """The name of the client's API key; empty where the front has none."""
    owner: str = request.scope.get(KEY_NAME, "")
    return owner


def _not_found(kind: str, name: str) -> Refusal:
    return Refusal(404, f"there is no {kind} {name[:100]}", kind=INVALID_REQUEST, code=f"{kind}_not_found")


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises `Refusal`: (400) it is none; (413) it is too large."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise body_too_large(MAX_BODY_BYTES)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as cause:
        raise bad_request("the body is not JSON", "body") from cause
    if not isinstance(body, dict):
        raise bad_request("the body is not a JSON object", "body")
    return body


def _expiry(anchor: object, seconds: object) -> int:
    """The seconds of an `expires_after`, or the default. Raises `Refusal` (400): it is not valid."""
    if anchor is None and seconds is None:
        return FILE_S
    text = str(seconds)
    if anchor != "created_at" or not text.isdecimal() or not MIN_EXPIRY_S <= int(text[:12]) <= MAX_EXPIRY_S:
        raise bad_request(
            f"expires_after: the anchor is created_at, and seconds from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}",
            "expires_after",
        )
    return int(text)


def _is_metadata(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_METADATA
        and all(isinstance(text, str) and len(text) <= 512 for pair in value.items() for text in pair)
    )


def _page(request: Request, found: Sequence[FileObject | BatchObject], default: int, most: int) -> Response:
    """A page of a list, from the object after `after` on."""
    query = request.query_params
    limit = query.get("limit", str(default))
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= most:
        raise bad_request(f"limit: a number from 1 to {most}", "limit")
    rows: list[FileObject | BatchObject] = (
        list(found) if query.get("order", "desc") == "desc" else list(reversed(found))
    )
    after = query.get("after")
    if after is not None:
        places = [place for place, row in enumerate(rows) if row.id == after]
        rows = rows[places[0] + 1 :] if places else []
    page = rows[: int(limit)]
    ids = [row.id for row in page]
    content = {
        "object": "list",
        "data": [row.shown() for row in page],
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": len(rows) > len(page),
    }
    return Response(msgspec.json.encode(content), media_type="application/json")
