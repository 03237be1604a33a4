# SPDX-License-Identifier: Apache-2.0
"""One start of `zpptool run-batch`: begins a run or continues it, and returns what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import IO, Any

import msgspec

from zpptool.batch.file_operations import FileOperations
from zpptool.batch.flow import EngineLoad
from zpptool.batch.identity import refuse_other
from zpptool.batch.input_files import BatchInput, files_of, is_spooled, shown_input, spooled
from zpptool.batch.input_lines import InputLines
from zpptool.batch.journal import FORMAT, INPUT_NAME, Header, Journal, Totals, read_header, write_header
from zpptool.batch.progress import Progress, ProgressMeter
from zpptool.batch.runner import Runner, RunRules
from zpptool.batch.server import BatchServer
from zpptool.batch.workplace import Workplace
from zpptool.errors import invalid_error, usage_error

Show = Callable[[str], None]
Stops = Callable[[], int]
"""Returns how many stop requests there were."""


@dataclass(frozen=True)
class RunSettings:
    """What a run computes, beside its server.

    Attributes:
        input: a file, a pattern, `-`, or a URL.
        identity: what the run has to be continued with; see `batch.identity`.
        defaults, limit, fixed, ordered, invariant: as in `RunRules`.
        seek_priority: whether requests get a lower priority than others, where the engine has priorities.
    """

    input: str
    identity: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    limit: int = 4096
    fixed: bool = False
    ordered: bool = False
    seek_priority: bool = False
    invariant: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one start of a run.

    Attributes:
        complete: whether every line has a result.
        total: lines of the input.
        totals: counts over all starts of the run.
        took_s: seconds that this start took for its lines.
        new_tokens: tokens that this start generated.
    """

    complete: bool
    total: int
    totals: Totals
    took_s: float
    new_tokens: int


@dataclass(frozen=True)
class Prepared:
    """A run that has been begun or is to be continued.

    Attributes:
        header: what it was begun with.
        lines: of its input.
    """

    header: Header
    lines: InputLines


def prepare(
    settings: RunSettings,
    place: Workplace,
    files: FileOperations,
    *,
    show: Show = lambda _text: None,
    now: Callable[[], float] = time.time,
    stdin: IO[bytes] | None = None,
) -> Prepared:
    """Read the input once, and begin the run, or check that it is continued with what it was begun with.

    Args:
        settings: of the run.
        place: its files; they are occupied (`workplace.occupied`).
        files: the file operations.
        show: shows progress.
        now: seconds since the epoch.
        stdin: standard input; None for that of this process.

    Raises:
        ZppError: (USAGE) there is no input; (INVALID) the input is faulty, or another than the run was begun with;
            (FAILURE) a file cannot be read or written.
    """
    header = read_header(place.journal)
    source = shown_input(settings.input) if is_spooled(settings.input) else ""
    identity = {**settings.identity, "input source": source}
    if header is not None:
        refuse_other(str(place.output), {**header.identity, "input": ""}, {**identity, "input": ""})
    else:  # a copy that there is belongs to a run that was never begun
        (place.journal / INPUT_NAME).unlink(missing_ok=True)
    found = _input(settings.input, place, files, stdin)
    lines = InputLines(found.paths, found.names)
    facts = lines.check(place.journal, lambda count: show(f"reading the input: {count} lines"))
    if facts.lines == 0:
        raise invalid_error(f"{shown_input(settings.input)} has no lines", "Name an input with a request a line.")
    described = f"{facts.lines} lines, digest {facts.digest[:16]}"
    identity = {**identity, "input": described}
    if header is not None:
        refuse_other(str(place.output), header.identity, identity)
        return Prepared(header, lines)
    header = Header(FORMAT, int(now()), identity, facts.digest, facts.lines, facts.nbytes)
    write_header(place.journal, header, files)
    return Prepared(header, lines)


def outcome_so_far(prepared: Prepared, place: Workplace, files: FileOperations) -> Outcome:
    """What has come of a run before anything more is computed.

    Args:
        prepared: the run.
        place: its files.
        files: the file operations.

    Raises:
        ZppError: (INVALID) the output is not what the journal proves; (FAILURE) a file cannot be written.
    """
    with closing(Journal(place.journal, place.output, place.errors, files)) as journal:
        lines = prepared.header.lines
        return Outcome(journal.done.count == lines, lines, journal.totals, 0.0, 0)


async def compute(
    prepared: Prepared,
    settings: RunSettings,
    place: Workplace,
    server: BatchServer,
    files: FileOperations,
    *,
    stops: Stops,
    on_progress: Callable[[Progress], None],
    check: Callable[[], None] = lambda: None,
    on_load: Callable[[EngineLoad], None] = lambda _load: None,
) -> Outcome:
    """Compute the lines that have no result yet.

    Args:
        prepared: the run.
        settings: of the run.
        place: its files.
        server: computes the lines.
        files: the file operations.
        stops: after one stop request no further line is begun; after two the lines in flight are given up.
        on_progress: called several times a second.
        check: called as often; an error that it raises ends the run.
        on_load: called with the engine's load once a second, where the engine reports it; likewise.

    Raises:
        ZppError: the server answers no more, or a file cannot be written.
    """
    opened = await asyncio.to_thread(Journal, place.journal, place.output, place.errors, files)
    with closing(opened) as journal:
        began, tokens_before = time.monotonic(), journal.totals.answer_tokens
        meter = ProgressMeter(prepared.header.lines, journal.totals)
        priority = 1 if settings.seek_priority and await _has_priorities(server) else None
        rules = RunRules(
            prepared.header.started,
            settings.defaults,
            priority,
            settings.limit,
            settings.fixed,
            settings.ordered,
            settings.invariant,
        )

        def tick(in_flight: int) -> None:
            check()
            on_progress(meter.look(in_flight))
            runner.stopping = runner.stopping or stops() > 0
            if stops() > 1:
                raise StoppedAtOnce

        runner = Runner(prepared.lines, journal, server, rules, tick, on_load)
        runner.stopping = stops() > 0
        complete = False
        with suppress(StoppedAtOnce):
            complete = await runner.run()
        on_progress(meter.look(0))
        took_s = time.monotonic() - began
        new_tokens = journal.totals.answer_tokens - tokens_before
        return Outcome(complete, prepared.header.lines, journal.totals, took_s, new_tokens)


class StoppedAtOnce(Exception):
    """A second stop request: lines in flight are given up."""


async def model_identity(server: BatchServer) -> dict[str, str]:
    """What identifies the model of a server that runs already: its name, and what the server says about it.

    Raises:
        ZppError: the server does not list its models.
    """
    card = (await server.models())[0]
    facts = {name: card[name] for name in ("root", "owned_by", "max_model_len") if card.get(name) is not None}
    return {"model": str(card.get("id", "")), "served model": msgspec.json.encode(facts, order="sorted").decode()}


def parse_defaults(texts: list[str]) -> dict[str, Any]:
    """The fields of `--default NAME=VALUE`; a value is JSON, or else text.

    Raises:
        ZppError: (USAGE) one has no name or no value, or a name is given twice.
    """
    fields: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name in fields:
            raise usage_error(f"--default {text} is no NAME=VALUE of its own", "For example --default max_tokens=256.")
        try:
            fields[name] = msgspec.json.decode(value.encode())
        except msgspec.DecodeError:
            fields[name] = value
    return fields


def _input(text: str, place: Workplace, files: FileOperations, stdin: IO[bytes] | None) -> BatchInput:
    return spooled(text, place.journal, files, stdin) if is_spooled(text) else files_of(text)


async def _has_priorities(server: BatchServer) -> bool:
    return await server.has_priorities(str((await server.models())[0].get("id", "")))
