# SPDX-License-Identifier: Apache-2.0
"""The body of an upload: one file of a multipart form, up to a limit, written to disk as it arrives."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from zpptool.batch.file_operations import FileOperations, append_all
from zpptool.serve.http_errors import INVALID_REQUEST, Refusal, body_too_large

MAX_FILE_BYTES = 200 << 20
"""The limit of a batch's input, as OpenAI's."""
_MARGIN_BYTES = 64 << 10
"""For what a form has around its file."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Upload:
    """What was uploaded.

    Attributes:
        filename: as the client calls it.
        nbytes: the size of the file.
        fields: the other fields of the form.
    """

    filename: str
    nbytes: int
    fields: dict[str, str]


async def receive_upload(request: Request, target: Path, files: FileOperations) -> Upload:
    """Write the file of a form to a path, and sync it.

    Args:
        request: of the client.
        target: the path; there must be no file.
        files: the file operations.

    Raises:
        Refusal: (400) there is no such form; (413) it is too large; OSError: the file cannot be written.
    """
    limited = Request(request.scope, _Limited(request, MAX_FILE_BYTES + _MARGIN_BYTES))
    try:
        async with limited.form(max_files=1, max_fields=16) as form:
            content = form.get("file")
            if not isinstance(content, UploadFile):
                raise bad_request("the form has no file", "file")
            descriptor = await asyncio.to_thread(files.open, target)
            nbytes = 0
            try:
                while chunk := await content.read(_CHUNK_BYTES):
                    nbytes += len(chunk)
                    await asyncio.to_thread(append_all, files, descriptor, chunk)
                await asyncio.to_thread(files.sync, descriptor)
            finally:
                files.close(descriptor)
            if nbytes > MAX_FILE_BYTES:
                raise body_too_large(MAX_FILE_BYTES)
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            return Upload((content.filename or "file")[:255], nbytes, fields)
    except HTTPException as cause:  # of a form that is damaged
        raise bad_request(f"the body is no form with a file: {cause.detail}", "file") from cause
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def bad_request(message: str, code: str) -> Refusal:
    """400: the request is wrong."""
    return Refusal(400, message, kind=INVALID_REQUEST, code=f"invalid_{code}")


class _Limited:
    """Receives a request's body, up to a limit.

    Args:
        request: whose body it is.
        limit: in bytes.
    """

    def __init__(self, request: Request, limit: int) -> None:
        self._receive, self._limit, self._seen = request.receive, limit, 0

    async def __call__(self) -> Message:
        """The next message. Raises `Refusal` (413): the body is larger than the limit."""
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._limit:
            raise body_too_large(self._limit)
        return message
