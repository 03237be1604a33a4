# SPDX-License-Identifier: Apache-2.0
"""Ranks 1 and up of a tensor-parallel stage, as its rank 0 starts and calls them.

Rank 0 owns the links. It forwards each call of the head to the other ranks before it does the call itself, and receives
an answer only where one is wanted. A rank that fails or ends also ends the stage, with an error that names the rank:
the ranks compute together, and without one of them the others would wait forever. Each connection is a socket pair that
only the two processes hold.
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
from zpptool.process.environment import parent_variables


class ForwardedCall(msgspec.Struct, frozen=True):
    """A call of the head, as rank 0 forwards it.

    Attributes:
        method: its name.
        answer: whether rank 0 wants an answer.
        payload: its arguments, in the engine's encoding.
    """

    method: str
    answer: bool
    payload: bytes


class Outcome(msgspec.Struct, frozen=True):
    """The result of a forwarded call.

    Attributes:
        payload: the answer, in the engine's encoding.
        fault: the error in one line; empty for none.
        fatal: whether the ranks may be in different states now, so that the stage cannot continue.
    """

    payload: bytes = b""
    fault: str = ""
    fatal: bool = False


class _Rank(NamedTuple):
    number: int
    process: subprocess.Popen[bytes]
    connection: Connection
    answers: queue.SimpleQueue[Outcome]


class TensorParallelRanks:
    """Ranks 1 and up of a stage, each in a process of its own.

    Args:
        spec: the stage.
        store: URL of the file through which torch.distributed of the ranks find each other.
        on_lost: called with the error that ends the stage, from a thread of its own; the process exits when it returns.
    """

    def __init__(self, spec: StageSpec, store: str, on_lost: Callable[[ZppError], None]) -> None:
        self._stage = spec.stage
        self._on_lost = on_lost
        self._ending = threading.Lock()
        self._ranks = [_start(spec, number, store) for number in range(1, spec.tensor_parallel_size)]
        for rank in self._ranks:
            threading.Thread(target=self._receive, args=(rank,), name=f"rank-{rank.number}", daemon=True).start()

    def forward(self, method: str, payload: bytes, *, answer: bool) -> None:
        """Have all ranks do a call of the head."""
        call = msgspec.msgpack.encode(ForwardedCall(method, answer, payload))
        for rank in self._ranks:
            try:
                rank.connection.send_bytes(call)
            except OSError:
                self._lose(rank, f"has ended ({_how_it_ended(rank.process)})")

    def answers(self, timeout_s: float) -> list[Outcome]:
        """The result of the last forwarded call, from each rank.

        Raises:
            ZppError: (STAGE) a rank has not answered in `timeout_s` seconds.
        """
        try:
            return [rank.answers.get(timeout=timeout_s) for rank in self._ranks]
        except queue.Empty:
            silent = f"a tensor-parallel rank of stage {self._stage} has not answered for {timeout_s:g} s"
            raise stage_error(silent) from None

    def _receive(self, rank: _Rank) -> None:
        try:
            while True:
                outcome = msgspec.msgpack.decode(rank.connection.recv_bytes(), type=Outcome)
                if outcome.fatal:
                    self._lose(rank, outcome.fault)
                rank.answers.put(outcome)
        except (EOFError, OSError):
            self._lose(rank, f"has ended ({_how_it_ended(rank.process)})")

    def _lose(self, rank: _Rank, why: str) -> None:
        with self._ending:  # never released: the first loss ends the process
            self._on_lost(stage_error(f"tensor-parallel rank {rank.number} of stage {self._stage} {why}"))
            os._exit(ExitCode.STAGE)


def _start(spec: StageSpec, number: int, store: str) -> _Rank:
    ours, theirs = Pipe()
    command = [sys.executable, "-m", TP_RANK, spec.to_json(), str(number), store]
    process = subprocess.Popen(
        [*command, str(theirs.fileno())],
        env={
            **os.environ,
            **openmp_environment({}, number, spec.tensor_parallel_size),
            **parent_variables(),
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
        return "it is still running"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
