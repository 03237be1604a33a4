# SPDX-License-Identifier: Apache-2.0
"""Has a server compute the lines of an input, and commits their results to the journal.

One task a line is in flight. A line that may be the cause of failures is set aside, and computed while nothing else is
in flight: then its failures are its own. Results are committed in groups, in a thread, twice a second.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from zpptool.batch.derivation import body_to_send
from zpptool.batch.flow import FIRST, EngineLoad, next_target
from zpptool.batch.journal import Journal
from zpptool.batch.request_line import RawLine, RequestLine
from zpptool.batch.result_line import Result, failure_of, result_of
from zpptool.batch.result_order import ResultOrder
from zpptool.batch.server import BatchServer, SuspectLine
from zpptool.batch.window import Windows

TICK_S = 0.2
COMMIT_S = 0.5
COMMIT_BYTES = 16 << 20
MAX_UNCOMMITTED_BYTES = 64 << 20
LOAD_S = 1.0
MAX_SUSPECTS = 256
LOST = "server_lost"


@dataclass(frozen=True)
class RunRules:
    """How the lines of a run are computed.

    Attributes:
        started: when the run was first started, in seconds since the epoch.
        defaults: values by field, for bodies that do not set it.
        priority: the scheduling priority of requests; None for none.
        limit: the most lines in flight.
        fixed: whether that many are in flight always, whatever the engine reports.
        ordered: whether results are written in the input's order.
        invariant: as in `result_of`.
    """

    started: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    priority: int | None = None
    limit: int = 4096
    fixed: bool = False
    ordered: bool = False
    invariant: bool = False


class Runner:
    """One start of a run.

    Attributes:
        stopping: set it to have no further line begun; `run` then returns when those in flight are done.

    Args:
        lines: all lines of the input.
        journal: gets the results.
        server: computes the lines.
        rules: how.
        on_tick: called several times a second with the number of lines in flight; an error that it raises ends the run.
        on_load: called with the engine's load once a second, where the engine reports it; likewise.
    """

    def __init__(
        self,
        lines: Iterable[RawLine],
        journal: Journal,
        server: BatchServer,
        rules: RunRules,
        on_tick: Callable[[int], None] = lambda _in_flight: None,
        on_load: Callable[[EngineLoad], None] = lambda _load: None,
    ) -> None:
        self._journal, self._server, self._rules, self._on_tick = journal, server, rules, on_tick
        self._on_load = on_load
        self._windows = Windows(lines, journal.done, ordered=rules.ordered)
        self._order = ResultOrder(journal.done, ordered=rules.ordered)
        self._queue: deque[RequestLine] = deque()
        self._suspects: deque[RequestLine] = deque()
        self._in_flight: dict[asyncio.Task[Result | None], RequestLine] = {}
        self._finished: asyncio.Queue[asyncio.Task[Result | None]] = asyncio.Queue()
        self._ready: list[Result] = []
        self._ready_bytes = 0
        self._commit: asyncio.Task[None] | None = None
        self._committed = time.monotonic()
        self._target = rules.limit if rules.fixed else min(FIRST, rules.limit)
        self.stopping = False

    async def run(self) -> bool:
        """Compute the lines that have no result yet.

        However it ends, results that are there are committed first, unless committing is what failed.

        Returns:
            whether every line of the input has a result.

        Raises:
            ZppError: the server answers no more, or a file cannot be written.
        """
        watch = asyncio.ensure_future(self._watch_load())
        try:
            while await self._step():
                if watch.done():
                    watch.result()
            return self._windows.exhausted and not self._queue and not self._suspects
        finally:
            for task in (*self._in_flight, watch):
                task.cancel()
            await asyncio.gather(*self._in_flight, watch, return_exceptions=True)
            await self._commit_all()

    async def _step(self) -> bool:
        """Begin lines, wait a moment, take what has finished; return whether there is more to do."""
        while not self.stopping and len(self._queue) < self._target and not self._windows.exhausted:
            requests, bad = await asyncio.to_thread(self._windows.next)
            self._queue.extend(requests)
            for line in bad:
                self._take(failure_of(line, line.code, line.message, self._rules.started))
            await self._commit_if_due()
        self._begin_lines()
        if not self._in_flight:
            return False
        with suppress(TimeoutError):
            task = await asyncio.wait_for(self._finished.get(), TICK_S)
            while True:
                self._end_line(task)
                if self._finished.empty():
                    break
                task = self._finished.get_nowait()
        await self._commit_if_due()
        self._on_tick(len(self._in_flight))
        return True

    def _begin_lines(self) -> None:
        if self.stopping:
            return
        held_up = self._order.is_full or len(self._suspects) >= MAX_SUSPECTS
        while self._queue and not held_up and len(self._in_flight) < self._target:
            self._begin(self._queue.popleft(), alone=False)
        if self._suspects and not self._in_flight:
            self._begin(self._suspects.popleft(), alone=True)

    def _begin(self, line: RequestLine, *, alone: bool) -> None:
        task = asyncio.ensure_future(self._compute(line, alone=alone))
        self._in_flight[task] = line
        task.add_done_callback(self._finished.put_nowait)

    async def _compute(self, line: RequestLine, *, alone: bool) -> Result | None:
        """The result of a line; None for one that is to be computed alone."""
        rules = self._rules
        try:
            answer = await self._server.answer(line.url, body_to_send(line, rules.defaults, rules.priority))
        except SuspectLine as suspect:
            if not alone:
                return None
            if suspect.answer is not None:
                return result_of(line, suspect.answer, rules.started)
            message = f"the server was lost each time that it computed this line alone: {suspect.reason}"
            return failure_of(line, LOST, message, rules.started)
        return result_of(line, answer, rules.started, invariant=rules.invariant)

    def _end_line(self, task: asyncio.Task[Result | None]) -> None:
        line = self._in_flight.pop(task)
        result = task.result()
        if result is None:
            self._suspects.append(line)
        else:
            self._take(result)

    def _take(self, result: Result) -> None:
        for ready in self._order.add(result):
            self._ready.append(ready)
            self._ready_bytes += len(ready.content)

    async def _commit_if_due(self) -> None:
        """Begin a commit when it is time; wait for one only if too much has not been committed."""
        if self._commit is not None and (self._commit.done() or self._ready_bytes >= MAX_UNCOMMITTED_BYTES):
            commit, self._commit = self._commit, None
            await commit
        is_due = time.monotonic() - self._committed >= COMMIT_S or self._ready_bytes >= COMMIT_BYTES
        if self._commit is None and self._ready and is_due:
            results, self._ready, self._ready_bytes = self._ready, [], 0
            self._committed = time.monotonic()
            self._commit = asyncio.ensure_future(asyncio.to_thread(self._journal.commit, results))

    async def _commit_all(self) -> None:
        """Commit what is there; after a failed commit nothing more is written."""
        if self._commit is not None:
            commit, self._commit = self._commit, None
            await commit
        elif self._journal.failed:
            return
        results, self._ready = self._ready, []
        if results:
            await asyncio.to_thread(self._journal.commit, results)

    async def _watch_load(self) -> None:
        while True:
            await asyncio.sleep(LOAD_S)
            load = await self._server.load()
            if load is None:
                continue
            self._on_load(load)
            if not self._rules.fixed:
                self._target = next_target(self._target, len(self._in_flight), load, self._rules.limit)
