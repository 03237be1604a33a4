# SPDX-License-Identifier: Apache-2.0
"""The requests for planned changes of a running pipeline and their answers, one JSON object a line.

They go over the head's own socket, or through a front server.

The invariant: a request is one bounded line, and anything that is not one of the types below is refused. The answers
are `Accepted`, if something has to be prepared first, then `Progress`, and one `Outcome` at the end.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from zpptool.admin.own_socket import connect_to_own
from zpptool.errors import ExitCode, ZppError, stage_error

MOST_BYTES = 64 << 10
"""The longest request or answer."""
PlainText = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[\x20-\x7e]*$")]
"""Printable ASCII, so that it can be logged."""


class Rollout(msgspec.Struct, tag="rollout", frozen=True, forbid_unknown_fields=True):
    """Have every stage restart, one after the other.

    Attributes:
        by: the requester, for logs.
    """

    by: PlainText


class Replace(msgspec.Struct, tag="replace", frozen=True, forbid_unknown_fields=True):
    """Move a stage's place to another process, possibly on another host, which asks for the place.

    Attributes:
        by: the requester, for logs.
        stage: the stage.
        address: from which the place sends after that.
        plan_digest: of the plan that the pipeline was started from.
        wait_s: how long to wait for the other process, in seconds.
    """

    by: PlainText
    stage: Annotated[int, msgspec.Meta(ge=0, lt=2**15)]
    address: PlainText
    plan_digest: PlainText
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=86400)]


class Rebalance(msgspec.Struct, tag="rebalance", frozen=True, forbid_unknown_fields=True):
    """Move layers between stages, all at once.

    Attributes:
        by: the requester, for logs.
        ranges: the new layer ranges, written `0-8`, one for each stage.
        plan_digest: of the plan that the pipeline was started from; empty for none.
    """

    by: PlainText
    ranges: Annotated[tuple[PlainText, ...], msgspec.Meta(max_length=2**15)]
    plan_digest: PlainText = ""


Request = Rollout | Replace | Rebalance


class Accepted(msgspec.Struct, tag="accepted", frozen=True, forbid_unknown_fields=True):
    """The change can be made. Nothing has changed yet.

    Attributes:
        text: what it waits for.
    """

    text: str


class Progress(msgspec.Struct, tag="progress", frozen=True, forbid_unknown_fields=True):
    """A step of a change, sent before it is taken; from the first one on, the change cannot be undone.

    Attributes:
        text: what happens.
        stage: the stage that has restarted; None if it is about none.
        pid: its new process.
        took_s: seconds since it was asked to leave.
    """

    text: str
    stage: int | None = None
    pid: int | None = None
    took_s: float | None = None


class Outcome(msgspec.Struct, tag="outcome", frozen=True, forbid_unknown_fields=True):
    """The end of a change.

    Attributes:
        text: the result.
        exit_code: 0 if the whole change was made.
        hint: what to do next.
    """

    text: str
    exit_code: int = int(ExitCode.OK)
    hint: str = ""

    def raise_fault(self) -> None:
        """Raise a `ZppError` if not the whole change was made."""
        if self.exit_code:
            code = ExitCode(self.exit_code) if self.exit_code in set(ExitCode) else ExitCode.FAILURE
            raise ZppError(self.text, self.hint or None, code)


Answer = Accepted | Progress | Outcome

_encoder = msgspec.json.Encoder()
_requests = msgspec.json.Decoder(Request)
_answers = msgspec.json.Decoder(Answer)


def whose(command: str) -> str:
    """The requester as text for logs: the command, its user and its process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # the user id has no name
        user = str(os.getuid())
    return f"{command} of {user.encode('ascii', 'replace').decode()}, pid {os.getpid()}"


def outcome_of(fault: ZppError) -> Outcome:
    """A fault as an outcome."""
    return Outcome(fault.message, int(fault.exit_code) or int(ExitCode.FAILURE), fault.hint or "")


def encode_line(message: Request | Answer) -> bytes:
    """A request or an answer as one line."""
    return _encoder.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in a line; raises `msgspec.DecodeError` if it is none."""
    request: Request = _requests.decode(line)
    return request


def decode_answer(line: bytes) -> Answer:
    """The answer in a line; raises `msgspec.DecodeError` if it is none."""
    answer: Answer = _answers.decode(line)
    return answer


def ask(path: Path, request: Request) -> Iterator[Answer]:
    """Request a change from the head at this socket, and yield its answers as they arrive, the outcome last.

    Closing the generator disconnects: the head completes the step that has begun, and begins no other.

    Raises:
        ZppError: (ADDRESS) no process accepts connections there; (INVALID) it belongs to another user, or another user
            may change it; (STAGE) the head has ended before the outcome, or what arrives is no answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connect_to_own(connection, path)
            connection.sendall(encode_line(request))
        except OSError as cause:
            raise no_head(path, cause) from cause
        with connection.makefile("rb") as lines:
            while True:
                try:
                    line = lines.readline(MOST_BYTES)
                except OSError:
                    line = b""
                answer = read_answer(line)
                yield answer
                if isinstance(answer, Outcome):
                    return


def no_head(path: Path, cause: OSError) -> ZppError:
    """The error for a socket that accepts no connections."""
    return ZppError(
        f"no head takes a planned change at {path}: {cause.strerror or cause}",
        "Is stage 0 running on this machine, and are you its user?",
        ExitCode.ADDRESS,
    )


def read_answer(line: bytes) -> Answer:
    """The answer in a line that has arrived.

    Raises:
        ZppError: (STAGE) the connection was closed instead, or it is no answer.
    """
    if not line:
        raise stage_error("the head has ended before the change was over", "See zpptool status and the log of stage 0.")
    try:
        return decode_answer(line)
    except msgspec.DecodeError as cause:
        raise stage_error(f"the answer of the head cannot be read: {cause}") from cause
