# SPDX-License-Identifier: Apache-2.0
"""Continues a run of ten million lines of which all but ten are done, and prints its greatest memory in bytes.

    python tests/batch_memory.py DIRECTORY [LINES]

The output is sparse: every done line has one byte of it.
"""

from __future__ import annotations

import asyncio
import gzip
import resource
import sys
import time
import zlib
from pathlib import Path

from batches import answering_server

from zpptool.batch.file_operations import FileOperations
from zpptool.batch.journal import journal_directory, read_header
from zpptool.batch.journal_record import Record
from zpptool.batch.result_line import OUTPUT
from zpptool.batch.run import RunSettings, compute, prepare
from zpptool.batch.server import BatchServer, open_client
from zpptool.batch.workplace import workplace_of

LEFT = 10


def line_of(number: int) -> bytes:
    return b'{"custom_id":"%d","url":"/v1/completions","body":{"prompt":"p%d","temperature":0}}\n' % (number, number)


def main() -> None:
    """Write the input, begin the run, write the journal of all lines but ten, and continue."""
    folder, lines = Path(sys.argv[1]), int((*sys.argv, "10000000")[2])
    place = workplace_of(folder / "out.jsonl", None)
    place.journal.mkdir()
    began = time.monotonic()
    with gzip.open(folder / "in.gz", "wb", compresslevel=1) as stream:
        for start in range(0, lines, 10_000):
            stream.write(b"".join(map(line_of, range(start, min(start + 10_000, lines)))))
    say(began, "the input is written")
    files = FileOperations()
    settings = RunSettings(input=str(folder / "in.gz"), identity={"model": "toy"}, ordered=True)
    prepared = prepare(settings, place, files)
    say(began, "the input was checked")
    write_records(place.journal / "records", lines - LEFT)
    with place.output.open("wb") as output:
        output.truncate(lines - LEFT)
    say(began, "the journal is written")

    async def go_on() -> None:
        with answering_server() as server:
            async with open_client(server.url, None) as client:
                outcome = await compute(
                    prepared, settings, place, BatchServer(client, 60), files,
                    stops=lambda: 0, on_progress=lambda _progress: None,
                )  # fmt: skip
            assert outcome.complete
            assert outcome.totals.done == lines, outcome
            assert len(server.seen) == LEFT

    asyncio.run(go_on())
    say(began, "the run is complete")
    assert read_header(journal_directory(place.output)) == prepared.header
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def write_records(path: Path, count: int) -> None:
    """The records of so many lines, one byte of output each."""
    crc, digest = zlib.crc32(b"\0"), bytes(16)
    with path.open("wb") as stream:
        for number in range(1, count + 1):
            stream.write(Record(number, 0, digest, digest, OUTPUT, crc, number, 1, 1).encoded())


def say(began: float, text: str) -> None:
    print(f"{time.monotonic() - began:.0f} s: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
