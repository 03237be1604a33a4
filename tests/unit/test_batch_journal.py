# SPDX-License-Identifier: Apache-2.0
"""The journal: whichever operation fails or is the last, a run that is continued has every result exactly once."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from batches import ERRNOS, Crash, FaultyFiles, entries, raw_lines, request

from zpptool.batch.file_operations import FileOperations
from zpptool.batch.journal import FORMAT, Header, Journal, Totals, read_header, write_header
from zpptool.batch.journal_record import RECORD_BYTES, proven, record_of
from zpptool.batch.request_line import RequestLine, parse_line
from zpptool.batch.result_line import ERRORS, OUTPUT, Result
from zpptool.errors import ZppError

HEADER = Header(FORMAT, 1_700_000_000, {"model": "toy"}, "0" * 64, 12, 900)
LINES = [line for line in map(parse_line, raw_lines(request(n) for n in range(12))) if isinstance(line, RequestLine)]
GROUPS = (LINES[:1], LINES[1:5], LINES[5:6], LINES[6:12])


def result(line: RequestLine) -> Result:
    """The result of a line: every fourth one is an error."""
    content = f'{{"custom_id": "{line.custom_id}", "n": "{"x" * (line.number * 7 % 40)}"}}\n'.encode()
    if line.number % 4 == 0:
        return Result(line, ERRORS, content)
    return Result(line, OUTPUT, content, prompt_tokens=line.number, answer_tokens=2)


def paths(folder: Path) -> tuple[Path, Path, Path]:
    journal = folder / "out.jsonl.journal"
    journal.mkdir(exist_ok=True)
    return journal, folder / "out.jsonl", folder / "errors.jsonl"


def start(folder: Path, files: FileOperations) -> None:
    """One start of a run: it begins or continues, and commits what has no result yet, group by group."""
    directory, output, errors = paths(folder)
    if read_header(directory) is None:
        write_header(directory, HEADER, files)
    with closing(Journal(directory, output, errors, files)) as journal:
        for group in GROUPS:
            left = [result(line) for line in group if line.number not in journal.done]
            if left:
                journal.commit(left)


def assert_exactly_once(folder: Path) -> None:
    _, output, errors = paths(folder)
    found = [entry["custom_id"] for path in (output, errors) for entry in entries(path)]
    assert sorted(found) == sorted(line.custom_id for line in LINES)


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many operations an undisturbed start has."""
    files = FaultyFiles()
    start(tmp_path_factory.mktemp("undisturbed"), files)
    return files.count


def folders(tmp_path: Path) -> Iterator[Path]:
    for number in range(10_000):
        folder = tmp_path / str(number)
        folder.mkdir()
        yield folder


@pytest.mark.parametrize("fault", ["crash", "short", *ERRNOS])
def test_every_failpoint_leaves_a_run_that_continues_to_every_result_once(
    tmp_path: Path, operations: int, fault: int | str
) -> None:
    fresh = folders(tmp_path)
    for at in range(operations):
        folder = next(fresh)
        caught: BaseException | None = None
        try:
            start(folder, FaultyFiles(at, fault, random.Random(at)))
        except (Crash, ZppError) as cause:
            caught = cause
        assert caught is not None, at
        if isinstance(caught, ZppError):
            assert os.strerror(int(fault)) in caught.message
            assert "continues" in (caught.hint or "")
        start(folder, FaultyFiles())
        assert_exactly_once(folder)


def test_crashes_at_two_failpoints_in_a_row(tmp_path: Path, operations: int) -> None:
    chance, fresh = random.Random(5), folders(tmp_path)
    for _ in range(60):
        folder = next(fresh)
        for _ in range(chance.randint(2, 4)):
            with suppress(Crash, ZppError):
                fault = chance.choice(["crash", "short", errno.ENOSPC, errno.EIO])
                start(folder, FaultyFiles(chance.randrange(operations), fault, chance))
        start(folder, FaultyFiles())
        assert_exactly_once(folder)


def test_a_torn_record_is_cut_off_and_its_line_is_computed_again(tmp_path: Path) -> None:
    directory, output, errors = paths(tmp_path)
    start(tmp_path, FileOperations())
    records = directory / "records"
    whole = records.read_bytes()
    assert len(whole) == len(LINES) * RECORD_BYTES
    for size in range(len(whole) - 2 * RECORD_BYTES, len(whole), 5):
        records.write_bytes(whole[:size])
        with closing(Journal(directory, output, errors, FaultyFiles())) as journal:
            assert journal.done.count == size // RECORD_BYTES
        start(tmp_path, FaultyFiles())
        assert_exactly_once(tmp_path)


def test_a_damaged_record_ends_what_is_proven(tmp_path: Path) -> None:
    directory, output, errors = paths(tmp_path)
    start(tmp_path, FileOperations())
    records = directory / "records"
    damaged = bytearray(records.read_bytes())
    damaged[5 * RECORD_BYTES + 3] ^= 1
    records.write_bytes(damaged)
    with closing(Journal(directory, output, errors, FileOperations())) as journal:
        assert journal.done.count == 5
        assert (journal.totals.done, journal.totals.failed) == (4, 1)
    start(tmp_path, FileOperations())
    assert_exactly_once(tmp_path)


def test_totals_are_those_of_all_starts(tmp_path: Path) -> None:
    directory, output, errors = paths(tmp_path)
    start(tmp_path, FileOperations())
    with closing(Journal(directory, output, errors, FileOperations())) as journal:
        succeeded = [line.number for line in LINES if line.number % 4]
        assert journal.totals == Totals(len(succeeded), 3, sum(succeeded), 2 * len(succeeded))


@pytest.mark.parametrize("name", ["out.jsonl", "errors.jsonl"])
def test_a_file_that_was_changed_is_refused_by_name(tmp_path: Path, name: str) -> None:
    start(tmp_path, FileOperations())
    path = tmp_path / name
    whole = path.read_bytes()
    for changed, words in ((whole[:-1], "bytes, but its journal proves"), (whole[:-9] + b"y" * 9, "does not end as")):
        path.write_bytes(changed)
        with pytest.raises(ZppError, match=words) as caught:
            start(tmp_path, FileOperations())
        assert name in caught.value.message
        assert caught.value.exit_code == 3


def test_what_follows_the_proven_results_is_cut_off(tmp_path: Path) -> None:
    _, output, _ = paths(tmp_path)
    start(tmp_path, FileOperations())
    whole = output.read_bytes()
    output.write_bytes(whole + b'{"custom_id": "request-1", "torn')
    start(tmp_path, FileOperations())
    assert output.read_bytes() == whole


def test_a_damaged_header_and_another_format_are_refused(tmp_path: Path) -> None:
    directory, _, _ = paths(tmp_path)
    (directory / "header.json").write_text("{")
    with pytest.raises(ZppError, match="is damaged"):
        read_header(directory)
    write_header(directory, HEADER, FileOperations())
    text = (directory / "header.json").read_text()
    (directory / "header.json").write_text(text.replace('"format":1', '"format":2'))
    with pytest.raises(ZppError, match="format 2"):
        read_header(directory)


def test_records_are_proven_only_while_their_files_grow(tmp_path: Path) -> None:
    first, second = (record_of(result(LINES[n]), end) for n, end in ((0, 50), (1, 50)))
    path = tmp_path / "records"
    path.write_bytes(first.encoded() + second.encoded())
    with path.open("rb") as stream:
        assert list(proven(stream)) == [first]


def test_after_a_failed_commit_nothing_of_it_counts(tmp_path: Path) -> None:
    directory, output, errors = paths(tmp_path)
    write_header(directory, HEADER, FileOperations())
    counting = FaultyFiles()
    with closing(Journal(directory, output, errors, counting)) as journal:
        journal.commit([result(LINES[0])])
    opened = counting.count
    for later in range(2, 8):
        files = FaultyFiles(opened + later, errno.EIO)
        with closing(Journal(directory, output, errors, files)) as journal:
            with suppress(ZppError):
                while not journal.failed:
                    number = journal.done.count
                    journal.commit([result(LINES[number])])
            assert journal.failed
            assert output.stat().st_size + errors.stat().st_size == sum(
                len(result(line).content) for line in LINES[: journal.done.count]
            )
