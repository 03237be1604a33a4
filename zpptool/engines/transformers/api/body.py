# SPDX-License-Identifier: Apache-2.0
"""The body of a request: JSON, read within limits.

Whatever is refused here would otherwise fail deep inside: in the tokenizer (half surrogate pairs), in the arithmetic
(infinite numbers), or by the stack (nesting).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from zpptool.engines.transformers.api.bad_request import BadRequest

MAX_BODY_BYTES = 16 << 20
"""A body may be this long. The longest prompts of a batch fit; decoding it takes a fraction of a second."""
MAX_BODY_BYTES_WITH_IMAGES = 64 << 20
"""The body of a chat with a model that takes images may be this long."""
THREAD_BYTES = 64 << 10
"""A body from this length on is decoded beside the event loop."""
MAX_DEPTH = 64
"""Lists and objects may be nested this deeply."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


async def read_json(request: Request, most_bytes: int = MAX_BODY_BYTES) -> Any:
    """The decoded JSON of a body of at most so many bytes.

    Raises:
        BadRequest: the body is too long, is not declared to be JSON, is not JSON, is nested too deeply, or has text
            that is not Unicode or numbers that are not finite.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise BadRequest(f"the media type is {media_type or 'missing'}; only application/json is allowed")
    body = await _read(request, most_bytes)
    return decode(body) if len(body) < THREAD_BYTES else await run_in_threadpool(decode, body)


def decode(body: bytes) -> Any:
    """The decoded JSON of a body; raises as `read_json`."""
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as cause:
        raise _too_deep() from cause
    except ValueError as cause:
        raise BadRequest(f"the body is not JSON: {cause}") from cause
    _check_depth(value)
    if _SURROGATE.search(text) is not None:
        _check_text(value)
    return value


async def _read(request: Request, most_bytes: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise BadRequest(f"the body is longer than {most_bytes} bytes", status=413)
    return bytes(body)


def _check_depth(value: Any) -> None:
    """Level by level, without recursion; lists of numbers or of text are not looked into."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()


def _check_text(value: Any) -> None:
    """Refuse half surrogate pairs, naming the field of the request that has one."""
    fields: Iterable[tuple[str, Any]] = value.items() if isinstance(value, dict) else [("the body", value)]
    for field, content in fields:
        if not _is_unicode(field):
            raise BadRequest("the name of a field has half of a surrogate pair, which is no character")
        unchecked = [content]
        while unchecked:
            part = unchecked.pop()
            if isinstance(part, str) and not _is_unicode(part):
                raise BadRequest(f"{field}: it has half of a surrogate pair, which is no character", field)
            unchecked += _children(part)
            if isinstance(part, dict):
                unchecked += part.keys()


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_deep() -> BadRequest:
    return BadRequest(f"the body is nested more than {MAX_DEPTH} levels deep")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
