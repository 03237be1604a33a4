# SPDX-License-Identifier: Apache-2.0
"""Runs `zpptool run-batch`: files, pipeline, server, signals and the display, tied together."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from zpptool.batch.file_operations import FileOperations
from zpptool.batch.flow import FIRST, EngineLoad
from zpptool.batch.invariance import IN_FLIGHT_A_STAGE, PreemptionWatch, refuse_other_server, refuse_preempted
from zpptool.batch.model_files import pipeline_identity
from zpptool.batch.own_pipeline import OwnPipeline, own_pipeline
from zpptool.batch.progress import Progress
from zpptool.batch.run import Outcome, Prepared, RunSettings, compute, model_identity, outcome_so_far, prepare
from zpptool.batch.run_status import RunStatus
from zpptool.batch.server import BatchServer, open_client
from zpptool.batch.workplace import Workplace, occupied
from zpptool.console import Console
from zpptool.errors import ExitCode, ZppError
from zpptool.net.addresses import without_credentials
from zpptool.process.signals import stop_requests
from zpptool.serve.serve_options import ServeSettings


@dataclass(frozen=True)
class BatchCommand:
    """What the command line asks for.

    Attributes:
        place: output, errors and journal.
        input: a file, a pattern, `-`, or a URL.
        defaults: fields for lines that do not set them.
        limit: the most lines in flight.
        ordered: whether results are written in the input's order.
        invariant: whether answers are to be the same for every batching.
        restart: whether to begin anew.
        retry_for_s: how long the server may answer no request, in seconds.
        url: of a pipeline that runs; None to start one.
        api_key: for that one; None for none.
        pipeline: the pipeline to start; None to use the one at `url`.
    """

    place: Workplace
    input: str
    defaults: dict[str, Any]
    limit: int
    ordered: bool
    invariant: bool
    restart: bool
    retry_for_s: float
    url: str | None
    api_key: str | None
    pipeline: ServeSettings | None


class StopRequests:
    """The stop requests so far.

    Args:
        received: gets an item for each.
        console: says what a request does.
    """

    def __init__(self, received: queue.SimpleQueue[int], console: Console) -> None:
        self._received, self._console, self._count = received, console, 0

    def count(self) -> int:
        """How many there were."""
        while not self._received.empty():
            self._received.get()
            self._count += 1
            if self._count == 1:
                self._console.note("stopping when the lines in flight are done; Ctrl-C again gives them up")
        return self._count


def run_command(command: BatchCommand, console: Console) -> Outcome:
    """Begin or continue a run, and compute its lines.

    Args:
        command: what the command line asks for.
        console: shows progress.

    Raises:
        ZppError: the run cannot be begun or continued, or did not come to its end: (INTERRUPTED) because of a stop
            request.
    """
    files = FileOperations()
    with console.ticker() as show, occupied(command.place, restart=command.restart):
        prepared, settings = _prepared(command, files, show)
        if command.invariant:
            refuse_preempted(command.place.journal)
        outcome = outcome_so_far(prepared, command.place, files)
        if not outcome.complete:
            outcome = _continued(command, prepared, settings, files, console, show)
    if not outcome.complete:
        finished = outcome.totals.done + outcome.totals.failed
        raise ZppError(
            f"interrupted: {finished} of {outcome.total} lines have a result, and all of them are safe",
            "Run the same command again: it continues.",
            ExitCode.INTERRUPTED,
        )
    return outcome


def _continued(
    command: BatchCommand,
    prepared: Prepared,
    settings: RunSettings,
    files: FileOperations,
    console: Console,
    show: Callable[[str], None],
) -> Outcome:
    """Compute the lines that have no result. From here on, a signal is a request to stop in good order."""
    status = RunStatus(command.place.output.name)

    def on_progress(progress: Progress) -> None:
        status.progress = progress
        show(progress.shown())

    with stop_requests() as received:
        stops = StopRequests(received, console)
        with _pipeline_of(command, console, stops, status) as (url, check):
            return asyncio.run(_compute(command, prepared, settings, files, url, stops, check, on_progress))


def _prepared(
    command: BatchCommand, files: FileOperations, show: Callable[[str], None]
) -> tuple[Prepared, RunSettings]:
    """Read the input, and begin the run or check that it is continued with the same."""
    if command.url is not None:
        show(f"asking {without_credentials(command.url)} for its model")
    identity = {
        **(asyncio.run(_identity_at(command)) if command.pipeline is None else _own_identity(command.pipeline)),
        "--default": " ".join(f"{name}={value!r}" for name, value in sorted(command.defaults.items())),
        "--invariant": "yes" if command.invariant else "",
        "errors file": str(command.place.errors.absolute()),
    }
    limit = command.limit
    if command.invariant:
        fixed = IN_FLIGHT_A_STAGE * len(command.pipeline.launch_plans[0].specs) if command.pipeline else FIRST
        limit = min(limit, fixed)
    settings = RunSettings(
        input=command.input,
        identity=identity,
        defaults=command.defaults,
        limit=limit,
        fixed=command.invariant,
        invariant=command.invariant,
        ordered=command.ordered,
        seek_priority=command.pipeline is None and not command.invariant,
    )
    return prepare(settings, command.place, files, show=show), settings


def _own_identity(pipeline: ServeSettings) -> dict[str, str]:
    return pipeline_identity(pipeline.launch_plans[0].specs)


async def _identity_at(command: BatchCommand) -> dict[str, str]:
    """The identity of the model at the command's URL."""
    assert command.url is not None
    async with open_client(command.url, command.api_key) as client:
        identity = await model_identity(BatchServer(client, command.retry_for_s))
    if command.invariant:
        refuse_other_server(command.url, identity)
    return identity


@contextmanager
def _pipeline_of(
    command: BatchCommand, console: Console, stops: StopRequests, status: RunStatus
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of the pipeline, and a function that raises when it has ended."""
    if command.pipeline is None:
        assert command.url is not None
        yield command.url, lambda: None
        return
    with ExitStack() as stack:
        own: OwnPipeline = stack.enter_context(own_pipeline(replace(command.pipeline, extension=status), console))
        own.wait_until_ready(lambda: stops.count() > 0)
        yield own.url, own.check


async def _compute(
    command: BatchCommand,
    prepared: Prepared,
    settings: RunSettings,
    files: FileOperations,
    url: str,
    stops: StopRequests,
    check: Callable[[], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    async with open_client(url, command.api_key) as client:
        server = BatchServer(client, command.retry_for_s)
        watch = PreemptionWatch(command.place.journal, await server.load()) if command.invariant else None
        outcome = await compute(
            prepared, settings, command.place, server, files,
            stops=stops.count, on_progress=on_progress, check=check, on_load=watch.see if watch else _ignore,
        )  # fmt: skip
        last = await server.load() if watch else None
        if watch and last is not None:
            watch.see(last)
        return outcome


def _ignore(_load: EngineLoad) -> None:
    """Do nothing with the load of an engine whose preemptions make no difference."""
