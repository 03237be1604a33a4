# SPDX-License-Identifier: Apache-2.0
"""What is still to be fetched of a file, from what a journal lists and what the file really holds."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
from blake3 import blake3

from zpptool.checkpoint.shards import Run
from zpptool.sources.ranges import Block, kept_blocks, missing_spans


def block(content: bytes, offset: int, nbytes: int) -> Block:
    return Block(offset, nbytes, blake3(content[offset : offset + nbytes]).hexdigest())


def test_only_blocks_whose_bytes_are_there_are_kept(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(1000)
    file, journal = tmp_path / "file", tmp_path / "journal"
    file.write_bytes(content[:600])
    held, lost, beyond = (
        block(content, 0, 200),
        block(content, 200, 200)._replace(blake3="0" * 64),
        block(content, 500, 300),
    )
    lines = [*map(msgspec.json.encode, (beyond, lost, held)), b'[400,100,"', b"not json"]
    journal.write_bytes(b"\n".join(lines))
    with file.open("rb") as stream:
        assert kept_blocks(stream.fileno(), journal) == [held]
        assert kept_blocks(stream.fileno(), tmp_path / "absent") == []


def test_what_is_missing_and_what_is_kept_are_all_of_the_runs_once() -> None:
    chance = random.Random(2)
    for _round in range(200):
        runs: list[Run] = []
        source, target = chance.randrange(50), chance.randrange(50)
        for _run in range(chance.randrange(1, 5)):
            nbytes = chance.randrange(1, 60)
            runs.append(Run(source, target, nbytes))
            source, target = source + nbytes + chance.randrange(9), target + nbytes
        bytes_of = {
            at: run.source + at - run.target for run in runs for at in range(run.target, run.target + run.nbytes)
        }
        kept: list[Block] = []
        at = 0
        while at < max(bytes_of):
            start = chance.randrange(at, at + 30)
            nbytes = chance.randrange(1, 20)
            if all(place in bytes_of for place in range(start, start + nbytes)):
                kept.append(Block(start, nbytes, ""))
            at = start + nbytes
        spans = missing_spans(runs, kept, 16)
        fetched = [
            (at, span.source + at - span.target)
            for span in spans
            for at in range(span.target, span.target + span.nbytes)
        ]
        held = {place for one in kept for place in range(one.offset, one.offset + one.nbytes)}
        assert all(span.nbytes <= 16 for span in spans)
        assert sorted(fetched) == sorted((place, bytes_of[place]) for place in bytes_of if place not in held)
