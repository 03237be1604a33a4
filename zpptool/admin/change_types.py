# SPDX-License-Identifier: Apache-2.0
"""What an operator may ask of a running pipeline, and what is answered: typed, one JSON object a line, over the head's
own socket or through a front.

The invariant: a request is one bounded line, and nothing that is not one of the types below is acted on. Answers are
`Accepted`, where something has to be prepared for it, and `Progress`, until the one `Outcome`; then nothing comes.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from zpptool.errors import ExitCode, ZppError, stage_error

MOST_BYTES = 64 << 10
"""No request, and no answer, is longer."""
Words = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[\x20-\x7e]*$")]
"""Text for logs, without what a terminal would obey."""


class Rollout(msgspec.Struct, tag="rollout", frozen=True, forbid_unknown_fields=True):
    """Every stage leaves and comes again, one after the other.

    Attributes:
        by: who asks.
    """

    by: Words


class Replace(msgspec.Struct, tag="replace", frozen=True, forbid_unknown_fields=True):
    """A stage's place moves to another process, on another host perhaps, which has asked for it beforehand.

    Attributes:
        by: who asks.
        stage: the stage.
        address: where its place sends from then on.
        plan_digest: of the plan that the pipeline was started from.
        wait_s: how long the other process is waited for.
    """

    by: Words
    stage: Annotated[int, msgspec.Meta(ge=0, lt=2**15)]
    address: Words
    plan_digest: Words
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=86400)]


class Rebalance(msgspec.Struct, tag="rebalance", frozen=True, forbid_unknown_fields=True):
    """Layers move between stages, all in one turn.

    Attributes:
        by: who asks.
        ranges: the layer ranges from then on, written `0-8`, one a stage.
        plan_digest: of the plan that the pipeline was started from; empty for none.
    """

    by: Words
    ranges: Annotated[tuple[Words, ...], msgspec.Meta(max_length=2**15)]
    plan_digest: Words = ""


Request = Rollout | Replace | Rebalance


class Accepted(msgspec.Struct, tag="accepted", frozen=True, forbid_unknown_fields=True):
    """The change can be made. Nothing is touched yet.

    Attributes:
        text: what it waits for, in words.
    """

    text: str


class Progress(msgspec.Struct, tag="progress", frozen=True, forbid_unknown_fields=True):
    """What comes about, from where there is no way back: said before it is done.

    Attributes:
        text: in words.
        stage: the stage that has come again; None where it is about none.
        pid: its process now.
        took_s: since it was asked to leave.
    """

    text: str
    stage: int | None = None
    pid: int | None = None
    took_s: float | None = None


class Outcome(msgspec.Struct, tag="outcome", frozen=True, forbid_unknown_fields=True):
    """The end of a change.

    Attributes:
        text: what has become of it, in words.
        exit_code: 0 where all was done that was asked for.
        hint: what to do next.
    """

    text: str
    exit_code: int = int(ExitCode.OK)
    hint: str = ""

    def raise_fault(self) -> None:
        """Raise a `ZppError` where not all was done."""
        if self.exit_code:
            code = ExitCode(self.exit_code) if self.exit_code in set(ExitCode) else ExitCode.FAILURE
            raise ZppError(self.text, self.hint or None, code)


Answer = Accepted | Progress | Outcome

_encoder = msgspec.json.Encoder()
_requests = msgspec.json.Decoder(Request)
_answers = msgspec.json.Decoder(Answer)


def whose(command: str) -> str:
    """Who asks, for the logs of those who are asked: the command, its user and its process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # nobody has that number
        user = str(os.getuid())
    return f"{command} of {user.encode('ascii', 'replace').decode()}, pid {os.getpid()}"


def outcome_of(fault: ZppError) -> Outcome:
    """The outcome that a fault is."""
    return Outcome(fault.message, int(fault.exit_code) or int(ExitCode.FAILURE), fault.hint or "")


def encode_line(said: Request | Answer) -> bytes:
    """A request or an answer as its line."""
    return _encoder.encode(said) + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in a line; raises `msgspec.DecodeError` where it is none."""
    request: Request = _requests.decode(line)
    return request


def decode_answer(line: bytes) -> Answer:
    """The answer in a line; raises `msgspec.DecodeError` where it is none."""
    answer: Answer = _answers.decode(line)
    return answer


def ask(path: Path, request: Request) -> Iterator[Answer]:
    """Ask the head that listens at `path`; its answers as they come, the outcome last. Who stops listening wants no
    more of it: what has begun is brought to its end, and nothing more is begun.

    Raises:
        ZppError: (ADDRESS) nobody listens there; (STAGE) it has gone before the outcome, or says what is no answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        try:
            asking.connect(str(path))
            asking.sendall(encode_line(request))
        except OSError as cause:
            raise no_head(path, cause) from cause
        with asking.makefile("rb") as lines:
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
    """The error for a socket where nobody listens."""
    return ZppError(
        f"no head takes a planned change at {path}: {cause.strerror or cause}",
        "Is stage 0 running on this machine, and are you its user?",
        ExitCode.ADDRESS,
    )


def read_answer(line: bytes) -> Answer:
    """The answer in a line that was waited for.

    Raises:
        ZppError: (STAGE) there is none, or it is none.
    """
    if not line:
        raise stage_error(
            "the head has gone before the change was over", "zpptool status, and the log of stage 0, say what goes on."
        )
    try:
        return decode_answer(line)
    except msgspec.DecodeError as cause:
        raise stage_error(f"what the head answers cannot be read: {cause}") from cause
