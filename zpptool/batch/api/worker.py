# SPDX-License-Identifier: Apache-2.0
"""Computes the batches of the Batch API, one after the other, over the pipelines of the front.

A front that is started again goes on with the batches that were not over: each has a journal, as a run of `run-batch`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from zpptool.batch.api.objects import BatchObject, FileObject, with_status
from zpptool.batch.api.store import BatchStore, result_file_id
from zpptool.batch.file_operations import FileOperations
from zpptool.batch.journal import Journal, journal_directory
from zpptool.batch.progress import Progress
from zpptool.batch.request_line import BadLine, parse_line
from zpptool.batch.result_line import Result, failure_of
from zpptool.batch.run import Outcome, Prepared, RunSettings, compute, prepare
from zpptool.batch.server import BatchServer
from zpptool.batch.workplace import Workplace
from zpptool.errors import ZppError, invalid_error

MAX_LINES = 50_000
FILE_S = 30 * 24 * 3600
"""How long files and the records of batches are kept, in seconds; as OpenAI's."""
EXPIRE_EVERY_S = 600.0
REST_S = 10.0
"""How long the worker rests after a fault of its disk or its pipelines, before it goes on."""
_GROUP = 1000
_logger = logging.getLogger(__name__)


class BatchWorker:
    """The one worker of a front.

    Attributes:
        progress: how far the batch that is being computed has come, by its id.
        current: the id of that batch; None for none.

    Args:
        store: of files and batches.
        server: the pipelines.
        files: the file operations.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        store: BatchStore,
        server: BatchServer,
        files: FileOperations,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._server, self._files, self._now = store, server, files, now
        self._wake = asyncio.Event()
        self.progress: dict[str, Progress] = {}
        self.current: str | None = None

    def wake(self) -> None:
        """There is a new batch."""
        self._wake.set()

    async def watch(self) -> None:
        """Compute batches, the oldest first, until it is cancelled."""
        while True:
            self._wake.clear()
            waiting = [batch for batch in self._store.batches_of(None) if batch.is_open]
            if not waiting:
                await asyncio.to_thread(self._store.expire, int(self._now()), FILE_S)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), EXPIRE_EVERY_S)
                continue
            batch = waiting[-1]
            self.current = batch.id
            try:
                await self._run(batch)
            except (ZppError, OSError) as fault:
                _logger.warning("the batch %s waits: %s", batch.id, fault)
                await asyncio.sleep(REST_S)
            except Exception:  # one batch must not end the computation of all others
                _logger.exception("the batch %s failed by a fault of zpptool", batch.id)
                error = {"code": "internal_error", "message": "a fault of the server", "line": None, "param": None}
                self._change(batch, "failed", errors=[error])
            finally:
                self.progress.pop(batch.id, None)
                self.current = None

    async def _run(self, batch: BatchObject) -> None:
        """Compute one batch, or what of it is left.

        Raises:
            ZppError: the pipelines do not answer, or a file cannot be written; the batch stays as it is.
        """
        directory = self._store.work(batch.id)
        output = directory / "output.jsonl"
        place = Workplace(output, directory / "errors.jsonl", journal_directory(output))
        place.journal.mkdir(exist_ok=True)
        settings = RunSettings(input=str(self._store.content(batch.input_file_id)), identity={}, seek_priority=True)
        try:
            prepared = await asyncio.to_thread(self._prepare, batch, settings, place)
        except ZppError as fault:
            error = {"code": "invalid_input", "message": fault.message, "line": None, "param": None}
            self._change(batch, "failed", errors=[error])
            return
        lines = prepared.header.lines
        batch = self._store.change_batch(
            batch.id, lambda now: self._in_progress(now, lines) if now.status == "validating" else now
        )
        if not batch.is_open:
            return

        def on_progress(progress: Progress) -> None:
            self.progress[batch.id] = progress
            self._store.count(batch.id, progress.done, progress.failed)

        outcome = await compute(
            prepared, settings, place, self._server, self._files,
            stops=lambda: self._stops(batch), on_progress=on_progress,
        )  # fmt: skip
        await asyncio.to_thread(self._finish, batch, prepared, place, outcome)

    def _prepare(self, batch: BatchObject, settings: RunSettings, place: Workplace) -> Prepared:
        prepared = prepare(settings, place, self._files, now=lambda: batch.created_at)
        if prepared.header.lines > MAX_LINES:
            raise invalid_error(f"the input has {prepared.header.lines} lines; a batch has at most {MAX_LINES}")
        for line in prepared.lines:
            parsed = parse_line(line)
            if not isinstance(parsed, BadLine) and parsed.url != batch.endpoint:
                raise invalid_error(f"line {line.number} is for {parsed.url}, and the batch is for {batch.endpoint}")
        return prepared

    def _stops(self, batch: BatchObject) -> int:
        """1 to begin no more lines: the batch is cancelled, or its time is over."""
        now = self._store.batch(batch.id)
        return int(now is None or now.status == "cancelling" or self._now() >= now.expires_at)

    def _finish(self, batch: BatchObject, prepared: Prepared, place: Workplace, outcome: Outcome) -> None:
        """Make files of output and errors, and end the batch."""
        current = self._store.batch(batch.id)
        assert current is not None
        done, failed = outcome.totals.done, outcome.totals.failed
        status: Any = "completed"
        if not outcome.complete:
            status = "cancelled" if current.status == "cancelling" else "expired"
        if status == "expired":
            failed += self._fail_rest(prepared, place)
        changes: dict[str, Any] = {"total": outcome.total, "completed": done, "failed": failed}
        for name, path, count in (("output", place.output, done), ("error", place.errors, failed)):
            if count:
                changes[f"{name}_file_id"] = self._publish(current, name, path)
        if status == "completed":
            self._change(batch, "finalizing")
        self._change(batch, status, **changes)

    def _fail_rest(self, prepared: Prepared, place: Workplace) -> int:
        """Give every line without a result one that says that the time was over; return how many there were."""
        journal = Journal(place.journal, place.output, place.errors, self._files)
        count = 0
        try:
            group: list[Result] = []
            for raw in prepared.lines:
                if raw.number in journal.done:
                    continue
                message = "This request could not be executed before the completion window expired."
                group.append(failure_of(parse_line(raw), "batch_expired", message, prepared.header.started))
                count += 1
                if len(group) == _GROUP:
                    journal.commit(group)
                    group = []
            if group:
                journal.commit(group)
        finally:
            journal.close()
        return count

    def _publish(self, batch: BatchObject, name: str, path: Path) -> str:
        """Make a file of a batch's output or errors. It is a second name of the same content, so that it can be made
        again after a crash in between."""
        now = int(self._now())
        incoming = self._store.incoming()
        incoming.hardlink_to(path)
        file = FileObject(
            id=result_file_id(batch.id, name),
            bytes=path.stat().st_size,
            created_at=now,
            expires_at=now + (batch.output_expires_s or FILE_S),
            filename=f"{batch.id}_{name}.jsonl",
            purpose="batch_output",
            owner=batch.owner,
        )
        self._store.add_file(file, incoming)
        return file.id

    def _in_progress(self, batch: BatchObject, lines: int) -> BatchObject:
        return msgspec.structs.replace(with_status(batch, "in_progress", int(self._now())), total=lines)

    def _change(self, batch: BatchObject, status: Any, **changes: Any) -> None:
        now = int(self._now())
        self._store.change_batch(batch.id, lambda current: with_status(current, status, now, **changes))
