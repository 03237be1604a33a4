# SPDX-License-Identifier: Apache-2.0
"""One line of a batch's output or of its errors, in OpenAI's batch format. Pure.

An engine's answer has ids and times of its own, which would differ if the line were computed again. They are replaced
by derived ones (`batch.derivation`), so that equal answers are equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from zpptool.batch.derivation import derived_hex
from zpptool.batch.request_line import BadLine, RequestLine

OUTPUT, ERRORS = 0, 1
"""The file that a result belongs to."""
_TIMES = ("created", "created_at", "completed_at")
FINGERPRINT = "system_fingerprint"
_SUCCESS = range(200, 300)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server has answered.

    Attributes:
        status: the HTTP status.
        body: the decoded JSON, or an error object that stands for a body that is not JSON.
    """

    status: int
    body: Any

    @property
    def is_success(self) -> bool:
        """Whether the request was computed."""
        return self.status in _SUCCESS


@dataclass(frozen=True, slots=True)
class Result:
    """A line's result, ready to be written.

    Attributes:
        line: the line.
        sink: `OUTPUT` or `ERRORS`.
        content: the bytes of the result, with the line's end.
        prompt_tokens, answer_tokens: of an answer; 0 where none was computed.
    """

    line: RequestLine | BadLine
    sink: int
    content: bytes
    prompt_tokens: int = 0
    answer_tokens: int = 0


def result_of(line: RequestLine, answer: Answer, started: int, *, invariant: bool = False) -> Result:
    """The result of a line that was answered: in the output if it was computed, else in the errors, with the answer.

    Args:
        line: the line.
        answer: of the server.
        started: when the run was first started, in seconds since the epoch.
        invariant: whether to leave out the fingerprint of the engine's configuration, which names the number of stages.
    """
    body = derived_body(answer.body, line.custom_id, started) if answer.is_success else answer.body
    if invariant and isinstance(body, dict) and FINGERPRINT in body:
        body = {**body, FINGERPRINT: None}
    response = {
        "status_code": answer.status,
        "request_id": derived_hex("request", started, line.custom_id),
        "body": body,
    }
    content = _entry(_entry_id(started, line.custom_id), line.custom_id, response, None)
    if not answer.is_success:
        return Result(line, ERRORS, content)
    usage = body.get("usage") if isinstance(body, dict) else None
    counts = usage if isinstance(usage, dict) else {}
    return Result(
        line,
        OUTPUT,
        content,
        _count(counts, "prompt_tokens", "input_tokens"),
        _count(counts, "completion_tokens", "output_tokens"),
    )


def failure_of(line: RequestLine | BadLine, code: str, message: str, started: int) -> Result:
    """The result of a line that has no answer: an entry in the errors.

    Args:
        line: the line.
        code: what is wrong, for programs.
        message: what is wrong, in one sentence.
        started: when the run was first started, in seconds since the epoch.
    """
    name = line.custom_id if line.custom_id is not None else f"\0line {line.number}"
    return Result(line, ERRORS, _entry(_entry_id(started, name), line.custom_id, None, (code, message)))


def derived_body(body: Any, custom_id: str, started: int) -> Any:
    """An answer's body with derived ids and times."""
    if not isinstance(body, dict):
        return body
    changed = dict(body)
    for name in _TIMES:
        if changed.get(name) is not None:
            changed[name] = started
    if isinstance(changed.get("id"), str):
        changed["id"] = _with_hex(changed["id"], derived_hex("answer", started, custom_id))
    for number, part in enumerate(_parts_with_ids(changed)):
        for name in ("id", "call_id"):
            if isinstance(part.get(name), str):
                part[name] = _with_hex(part[name], derived_hex(f"part {number}", started, custom_id))
    return changed


def _parts_with_ids(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The tool calls of a chat's choices and the items of a response's output."""
    for choice in _dicts(body.get("choices")):
        message = choice.get("message")
        yield from _dicts(message.get("tool_calls") if isinstance(message, dict) else None)
    yield from _dicts(body.get("output"))


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    return (each for each in value if isinstance(each, dict)) if isinstance(value, list) else iter(())


def _with_hex(identifier: str, digits: str) -> str:
    """The prefix of an id, up to and including its first `-` or `_`, and other digits."""
    ends = [place for place in (identifier.find("-"), identifier.find("_")) if place >= 0]
    return identifier[: min(ends) + 1 if ends else 0] + digits


def _count(counts: dict[str, Any], *names: str) -> int:
    return next((value for name in names if isinstance(value := counts.get(name), int)), 0)


def _entry_id(started: int, name: str) -> str:
    return f"batch_req_{derived_hex('entry', started, name)}"


def _entry(identifier: str, custom_id: str | None, response: Any, fault: tuple[str, str] | None) -> bytes:
    error = {"code": fault[0], "message": fault[1]} if fault else None
    entry = {"id": identifier, "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(entry) + b"\n"
