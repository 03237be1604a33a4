# SPDX-License-Identifier: Apache-2.0
"""The processes that measure the parts of a model: started, asked and ended together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from zpptool.config.cpu_binding import openmp_environment
from zpptool.config.engine_kind import ENGINES
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError, stage_error
from zpptool.process.group import STARTER, ProcessGroup
from zpptool.process.measuring import Answer, Limits, MeasuringProcess, Question
from zpptool.supervisor.stage_processes import child_environment, raise_if_ended

POLL_S = 0.2
A = TypeVar("A", bound=Answer)


class MeasuringProcesses:
    """One process for each part. Use as a context manager: leaving it ends them all.

    Args:
        scratch: a private directory for their sockets.
        logs: the directory of their logs.
        timeout_s: how long a process may take to start, or to answer.
    """

    def __init__(self, scratch: Path, logs: Path, timeout_s: float) -> None:
        self._scratch, self._logs, self._timeout_s = scratch, logs, timeout_s
        self._group = ProcessGroup()
        self._processes: list[MeasuringProcess] = []

    def start(self, spec: StageSpec, name: str) -> list[int]:
        """Start the processes of a part, one for each of its tensor-parallel ranks; returns their numbers."""
        size = spec.tensor_parallel_size
        first = len(self._processes)
        store = self._scratch / f"store-{first}"
        for rank in range(size):
            number = first + rank
            socket = self._scratch / f"part-{number}"
            own = name if size == 1 else f"{name}, rank {rank}"
            self._processes.append(MeasuringProcess(own, socket))
            env = child_environment({})
            words = [ENGINES[spec.engine].measure, spec.to_json(), str(socket), str(store), str(rank)]
            log = self._logs / f"part-{number}.log"
            self._group.start(own, [*STARTER, *words], env | openmp_environment(env, rank, size), log)
        return list(range(first, first + size))

    def limits(self, number: int) -> Limits:
        """What the engine of a part takes, once its process has started."""
        process = self._processes[number]
        self._wait(lambda: process.connected(POLL_S) or None, process.name, "started")
        return self.answer(number, Limits)

    def ask(self, number: int, question: Question) -> None:
        """Ask the process of a part; `answer` waits for its answer."""
        with suppress(OSError):  # it has ended, which `answer` reports
            self._processes[number].ask(question)

    def answer(self, number: int, kind: type[A]) -> A:
        """The answer of a part's process.

        Raises:
            ZppError: it could not answer, has ended, or has not answered in time.
        """
        process = self._processes[number]
        answer = self._wait(lambda: process.answer(POLL_S), process.name, "answered")
        assert isinstance(answer, kind)
        return answer

    def asked(self, number: int, question: Question, kind: type[A]) -> A:
        """Ask the process of a part, and wait for its answer."""
        self.ask(number, question)
        return self.answer(number, kind)

    def all_asked(self, questions: Sequence[tuple[int, Question]], kind: type[A]) -> list[A]:
        """Ask several processes at once, and wait for all answers."""
        for number, question in questions:
            self.ask(number, question)
        return [self.answer(number, kind) for number, _question in questions]

    def end(self, numbers: Sequence[int]) -> None:
        """End the processes of a part, which is not asked again."""
        for number in numbers:
            self._processes[number].close()
        self._group.stop(names=[self._processes[number].name for number in numbers])

    def __enter__(self) -> MeasuringProcesses:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.close()
        self._group.stop()

    def _wait(self, look: Callable[[], A | bool | None], name: str, verb: str) -> A | bool:
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            try:
                found = look()
            except EOFError:
                self._group.settle()
                raise_if_ended(self._group)
                raise stage_error(f"{name} has closed its connection") from None
            if found is not None:
                return found
            raise_if_ended(self._group)
        raise ZppError(f"{name} has not {verb} in {self._timeout_s:g} s", "Give it longer with --start-timeout.")
