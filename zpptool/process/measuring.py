# SPDX-License-Identifier: Apache-2.0
"""A process that measures a part of a model, and its parent: one JSON object a line over a unix socket.

The parent asks, the process answers, one question at a time. The socket is in the run's private directory, and both
ends watch each other: a process whose parent has ended ends too (`child.die_with_parent`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from zpptool.errors import ExitCode, ZppError, in_words
from zpptool.planner.device_profile import CacheCosts

_BACKLOG = 16


class Phase(StrEnum):
    """What a step computes."""

    PREFILL = "prefill"
    DECODE = "decode"


class Point(msgspec.Struct, frozen=True, order=True):
    """One kind of step.

    Attributes:
        phase: prompts, or one token of each sequence.
        tokens: computed in the step, of all sequences together.
        sequences: how many.
        context: tokens of each sequence in the cache before the step.
    """

    phase: Phase
    tokens: int
    sequences: int
    context: int


class Limits(msgspec.Struct, frozen=True, tag=True):
    """The most that the engine takes: tokens of a step, sequences, and tokens of a sequence.

    Attributes:
        device: a name of the kind of device that computes.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    device: str


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load the part, with room in its cache for these steps."""

    points: tuple[Point, ...]


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """It is loaded: so many bytes of weights, in so many seconds."""

    weight_bytes: int
    seconds: float


class Time(msgspec.Struct, frozen=True, tag=True):
    """Do a step so many times."""

    point: Point
    repeats: int


class Times(msgspec.Struct, frozen=True, tag=True):
    """Seconds of each step: of the forward pass, and of sampling (empty where the part does not sample)."""

    forward: tuple[float, ...]
    sampling: tuple[float, ...] = ()


class Workspace(msgspec.Struct, frozen=True, tag=True):
    """Do a step of so many tokens."""

    tokens: int


class WorkspaceBytes(msgspec.Struct, frozen=True, tag=True):
    """The most memory that the process has used in that step, besides weights and cache."""

    bytes: int


class ReadRate(msgspec.Struct, frozen=True, tag=True):
    """Read the part's weights again, from the disk, onto the device."""


class BytesPerSecond(msgspec.Struct, frozen=True, tag=True):
    """How fast the weights were read."""

    rate: float


class Cache(msgspec.Struct, frozen=True, tag=True):
    """Report the cache of the whole model.

    Attributes:
        layer_types: the type of each layer.
        ranks: the tensor-parallel sizes in question.
    """

    layer_types: tuple[str, ...]
    ranks: tuple[int, ...] = (1,)


class CacheReport(msgspec.Struct, frozen=True, tag=True):
    """The cache by the engine's own specification."""

    costs: CacheCosts


class Fault(msgspec.Struct, frozen=True, tag=True):
    """The question could not be answered."""

    message: str
    hint: str | None = None
    exit_code: int = int(ExitCode.FAILURE)


Question = Load | Time | Workspace | ReadRate | Cache
Answer = Limits | Loaded | Times | WorkspaceBytes | BytesPerSecond | CacheReport | Fault
_question = msgspec.json.Decoder(Question)
_answer = msgspec.json.Decoder(Answer)
_encoder = msgspec.json.Encoder()


class MeasuredPart(Protocol):
    """A part of a model in an engine, as it is measured."""

    def limits(self) -> Limits:
        """What the engine takes; known before anything is loaded."""
        ...

    def load(self, points: tuple[Point, ...]) -> Loaded:
        """Load the part, with room in its cache for these steps."""
        ...

    def time(self, point: Point, repeats: int) -> Times:
        """Do a step so many times."""
        ...

    def workspace(self, tokens: int) -> int:
        """Do a step of so many tokens; the most bytes that the process used, besides weights and cache."""
        ...

    def read_rate(self) -> float:
        """Read the part's weights again; bytes per second."""
        ...

    def cache(self, layer_types: tuple[str, ...], ranks: tuple[int, ...]) -> CacheCosts:
        """The cache of the whole model, which needs no weights."""
        ...


def answer_questions(path: Path, part: MeasuredPart) -> None:
    """Report the limits, then answer the parent's questions until it closes the connection.

    A question that fails is answered with its error, and the next one may succeed.

    Args:
        path: the parent's socket.
        part: what answers.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        with connection.makefile("rwb") as lines:
            _write(lines.write, lines.flush, part.limits())
            for line in lines:
                _write(lines.write, lines.flush, _answered(part, line))


def _answered(part: MeasuredPart, line: bytes) -> Answer:
    try:
        match _question.decode(line):
            case Load(points):
                return part.load(points)
            case Time(point, repeats):
                return part.time(point, repeats)
            case Workspace(tokens):
                return WorkspaceBytes(part.workspace(tokens))
            case ReadRate():
                return BytesPerSecond(part.read_rate())
            case Cache(layer_types, ranks):
                return CacheReport(part.cache(layer_types, ranks))
    except ZppError as fault:
        return Fault(fault.message, fault.hint, int(fault.exit_code))
    except Exception as cause:  # of the engine or the model: the parent names the part and ends
        return Fault(in_words(cause))


def _write(write: Callable[[bytes], object], flush: Callable[[], None], message: Question | Answer) -> None:
    write(_encoder.encode(message) + b"\n")
    flush()


class MeasuringProcess:
    """The parent's end of the connection to one measuring process.

    Args:
        name: what a user calls the process.
        path: where its socket is to be.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(_BACKLOG)
        self._connection: socket.socket | None = None
        self._buffer = b""

    def connected(self, timeout_s: float) -> bool:
        """Whether the process has connected, after waiting up to so many seconds for it."""
        if self._connection is None:
            self._listener.settimeout(timeout_s)
            try:
                self._connection, _ = self._listener.accept()
            except TimeoutError:
                return False
        return True

    def ask(self, question: Question) -> None:
        """Send a question. The answer is waited for with `answer`."""
        assert self._connection is not None
        self._connection.sendall(_encoder.encode(question) + b"\n")

    def answer(self, timeout_s: float) -> Answer | None:
        """The answer to the last question, or None where it has not come within so many seconds.

        Raises:
            ZppError: (as the process reports it) the question could not be answered; EOFError: the process has ended.
        """
        assert self._connection is not None
        while b"\n" not in self._buffer:
            self._connection.settimeout(timeout_s)
            try:
                received = self._connection.recv(1 << 16)
            except TimeoutError:
                return None
            except ConnectionError as cause:
                raise EOFError from cause
            if not received:
                raise EOFError
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        found = _answer.decode(line)
        if isinstance(found, Fault):
            raise ZppError(f"{self.name}: {found.message}", found.hint, exit_code=ExitCode(found.exit_code))
        return found

    def close(self) -> None:
        """Close the connection, upon which the process ends."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
