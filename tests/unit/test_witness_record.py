# SPDX-License-Identifier: Apache-2.0
"""A record is read as it was written, up to where a process was killed, and damage is refused by name."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import record

from zpptool.errors import ExitCode, ZppError
from zpptool.witness.record import MAGIC, REFERENCE, Record, RecordWriter, Weight, read_record

WEIGHT = Weight("layers.0.weight", "bfloat16", (2, 3), "ab" * 32)


def written(path: Path, made: Record) -> Path:
    writer = RecordWriter(path, made.header)
    writer.write(WEIGHT)
    for each in made.steps:
        number = writer.layout_number(each.layout)
        assert number == each.step.layout
        writer.write(each.step)
    writer.close()
    return path


@pytest.mark.parametrize("stage", [REFERENCE, 0, 1])
def test_a_record_is_read_as_it_was_written(tmp_path: Path, stage: int) -> None:
    made = record(stage)
    got = read_record(written(tmp_path / "one.zppw", made))
    assert (got.header, got.steps, got.weights) == (made.header, made.steps, {WEIGHT.name: WEIGHT})
    hashes = got.steps[0].hashes()
    assert list(hashes) == list(made.steps[0].layout.taps)
    assert sum(map(len, hashes.values())) == len(made.steps[0].step.hashes)


def test_a_record_that_is_cut_off_holds_the_whole_steps(tmp_path: Path) -> None:
    path = written(tmp_path / "one.zppw", record(0))
    content = path.read_bytes()
    counts = []
    for end in range(len(content), len(content) - 400, -1):
        path.write_bytes(content[:end])
        counts.append(len(read_record(path).steps))
    assert counts[:2] == [6, 5]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no witness record"),
        (b"GIF89a", "is no witness record"),
        (MAGIC, "without a header"),
        (MAGIC + b"\x02\0\0\0\x91\x01", "damaged"),
        (MAGIC + b"\xff\xff\xff\xff" + b"x" * 50, "damaged"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "one.zppw"
    path.write_bytes(content)
    with pytest.raises(ZppError, match=words) as refused:
        read_record(path)
    assert refused.value.exit_code is ExitCode.INVALID


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.data())
def test_a_damaged_record_is_read_or_refused_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    path = written(tmp_path / "one.zppw", record(1))
    content = bytearray(path.read_bytes())
    for _flip in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(content))
    with suppress(ZppError):
        for each in read_record(path).steps:
            each.hashes()
            each.sketches()
