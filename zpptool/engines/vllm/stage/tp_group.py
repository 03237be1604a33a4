# SPDX-License-Identifier: Apache-2.0
"""The other processes of a tensor-parallel stage, as its rank 0 sees them.

Rank 0 owns the links. It hands each call of the head on to the others, before it does it itself, and hears from them
only where an answer is wanted. What fails or ends in one of them ends the stage, by name: the ranks compute together,
and one that is missing leaves the others waiting for ever. Bytes go over a socket pair that only the two hold.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NamedTuple

import msgspec

from zpptool.config.cpu_binding import openmp_environment
from zpptool.config.engine_kind import TP_RANK
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ExitCode, ZppError, stage_error
from zpptool.process.child import PARENT_VARIABLE


class Order(msgspec.Struct, frozen=True):
    """A call of the head, handed on.

    Attributes:
        method: what to do.
        answer: whether an answer is wanted.
        payload: its arguments, in the engine's encoding.
    """

    method: str
    answer: bool
    payload: bytes


class Outcome(msgspec.Struct, frozen=True):
    """What came of an order.

    Attributes:
        payload: the answer, in the engine's encoding.
        fault: what went wrong; empty if nothing did.
        fatal: whether the ranks may differ now, so that the stage cannot go on.
    """

    payload: bytes = b""
    fault: str = ""
    fatal: bool = False


class _Rank(NamedTuple):
    number: int
    process: subprocess.Popen[bytes]
    line: Connection
    answers: queue.SimpleQueue[Outcome]


class Ranks:
    """Ranks 1 and up of a stage, each in a process of its own.

    Args:
        spec: the stage.
        store: where the ranks meet, for torch.distributed.
        on_lost: told, from a thread of its own, what ended the stage; the process ends when it returns.
    """

    def __init__(self, spec: StageSpec, store: str, on_lost: Callable[[ZppError], None]) -> None:
        self._stage = spec.stage
        self._on_lost = on_lost
        self._ending = threading.Lock()
        self._ranks = [_start(spec, number, store) for number in range(1, spec.tensor_parallel_size)]
        for rank in self._ranks:
            threading.Thread(target=self._hear, args=(rank,), name=f"rank-{rank.number}", daemon=True).start()

    def order(self, method: str, payload: bytes, *, answer: bool) -> None:
        """Have all ranks do a call of the head."""
        order = msgspec.msgpack.encode(Order(method, answer, payload))
        for rank in self._ranks:
            try:
                rank.line.send_bytes(order)
            except OSError:
                self._lose(rank, f"has gone ({_how_it_ended(rank.process)})")

    def answers(self, timeout_s: float) -> list[Outcome]:
        """What came of the last order, of each rank.

        Raises:
            ZppError: (STAGE) one is silent.
        """
        try:
            return [rank.answers.get(timeout=timeout_s) for rank in self._ranks]
        except queue.Empty:
            raise stage_error(f"a tensor-parallel rank of stage {self._stage} is silent for {timeout_s:g} s") from None

    def _hear(self, rank: _Rank) -> None:
        try:
            while True:
                outcome = msgspec.msgpack.decode(rank.line.recv_bytes(), type=Outcome)
                if outcome.fatal:
                    self._lose(rank, outcome.fault)
                rank.answers.put(outcome)
        except (EOFError, OSError):
            self._lose(rank, f"has gone ({_how_it_ended(rank.process)})")

    def _lose(self, rank: _Rank, why: str) -> None:
        with self._ending:  # never given back: the first one ends the process
            self._on_lost(stage_error(f"tensor-parallel rank {rank.number} of stage {self._stage} {why}"))
            os._exit(ExitCode.STAGE)


def _start(spec: StageSpec, number: int, store: str) -> _Rank:
    ours, theirs = Pipe()
    words = [sys.executable, "-m", TP_RANK, spec.to_json(), str(number), store]
    process = subprocess.Popen(
        [*words, str(theirs.fileno())],
        env={
            **os.environ,
            **openmp_environment({}, number, spec.tensor_parallel_size),
            PARENT_VARIABLE: str(os.getpid()),
        },
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    return _Rank(number, process, ours, queue.SimpleQueue())


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(2)
    except subprocess.TimeoutExpired:
        return "it still runs"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
