# SPDX-License-Identifier: Apache-2.0
"""One line of a batch's input, in OpenAI's batch format: `custom_id`, `method`, `url` and `body`. Pure.

A line that is no request is returned as a `BadLine`, never raised: it gets an entry in the file of errors, and the
other lines are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
"""The paths whose requests draw random numbers."""
URLS = (*GENERATING, "/v1/embeddings")
"""The paths that a line may name."""
MAX_LINE_BYTES = 64 << 20
"""The greatest length of a line in bytes."""


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line as it was read.

    Attributes:
        number: its number over all files of the input, from 1; empty lines have none.
        offset: of its first byte over all files of the input, decompressed.
        place: its file and its number there, for messages.
        content: without the line's end; None for a line that is longer than `MAX_LINE_BYTES`.
    """

    number: int
    offset: int
    place: str
    content: bytes | None


@dataclass(frozen=True, slots=True)
class RequestLine:
    """A request.

    Attributes:
        number, offset: as in `RawLine`.
        custom_id: names the request; unique in its input.
        url: one of `URLS`.
        body: of the request.
        content: the line as it was read.
    """

    number: int
    offset: int
    custom_id: str
    url: str
    body: dict[str, Any]
    content: bytes


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no request.

    Attributes:
        number, offset: as in `RawLine`.
        custom_id: None where the line has none.
        code: what is wrong, for programs.
        message: where and what is wrong, in one sentence.
        content: the line as it was read; empty for one that is too long.
    """

    number: int
    offset: int
    custom_id: str | None
    code: str
    message: str
    content: bytes


class _Named(msgspec.Struct):
    custom_id: Any = None


def custom_id_of(content: bytes | None) -> str | None:
    """The `custom_id` of a line; None for a line that is not JSON or has no valid one."""
    if content is None:
        return None
    try:
        found = msgspec.json.decode(content, type=_Named).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, str) and found else None


def parse_line(line: RawLine) -> RequestLine | BadLine:
    """The request of a line, or what is wrong with it."""
    content = line.content
    if content is None:
        return _bad(line, None, "line_too_long", f"it is longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        entry = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
        return _bad(line, None, "invalid_json_line", f"it is not JSON: {cause}")
    if not isinstance(entry, dict):
        return _bad(line, None, "invalid_json_line", "it is not a JSON object")
    custom_id = entry.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return _bad(line, None, "missing_custom_id", "custom_id is missing, empty or not a text")
    fault = _fault(entry)
    if fault is not None:
        return _bad(line, custom_id, *fault)
    return RequestLine(line.number, line.offset, custom_id, entry["url"], entry["body"], content)


def _fault(entry: dict[str, Any]) -> tuple[str, str] | None:
    """The code and the description of what is wrong with an entry that has a `custom_id`; None for nothing."""
    if entry.get("method", "POST") != "POST":
        return "invalid_method", f"method is {_shown(entry['method'])}; a batch has POST only"
    url = entry.get("url")
    if url not in URLS:
        return "invalid_url", f"url is {_shown(url)}; a batch has {', '.join(URLS)}"
    body = entry.get("body")
    if not isinstance(body, dict):
        return "invalid_body", "body is missing or not a JSON object"
    if body.get("stream"):
        return "invalid_body", "body.stream is set; a batch has no streams"
    return None


def _shown(value: object) -> str:
    return "missing" if value is None else msgspec.json.encode(value).decode()[:80]


def _bad(line: RawLine, custom_id: str | None, code: str, what: str) -> BadLine:
    return BadLine(line.number, line.offset, custom_id, code, f"{line.place}: {what}", line.content or b"")
