# SPDX-License-Identifier: Apache-2.0
"""The journal of a run: which results are in the output and the errors, beyond a crash at any moment.

The invariant: a record is written after its result has reached the device. So whatever the journal proves is there, and
what follows it in the two files is not proven: it is cut off, and computed again. Every line therefore has exactly one
result, however often the run was killed.

The journal is a directory beside the output: `header.json`, written once by a rename; `records`
(`batch.journal_record`); `input`, for an input that cannot be read twice.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zpptool.batch.done_lines import DoneLines
from zpptool.batch.file_operations import FileOperations, append_all
from zpptool.batch.journal_record import RECORD_BYTES, Record, proven, record_of
from zpptool.batch.result_line import ERRORS, OUTPUT, Result
from zpptool.errors import ZppError, invalid_error

HEADER_NAME, RECORDS_NAME, INPUT_NAME = "header.json", "records", "input"
SUFFIX = ".journal"
FORMAT = 1
_HINTS = {
    errno.ENOSPC: "Free space on that file system, and run the same command again: it continues.",
    errno.EDQUOT: "Free space within the quota, and run the same command again: it continues.",
    errno.EROFS: "Make that file system writable, and run the same command again: it continues.",
}
_HINT = "Check the device, and run the same command again: it continues with what is safe."


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run was begun with.

    Attributes:
        format: of the journal.
        started: when the run was first started, in seconds since the epoch; ids and times are derived from it.
        identity: see `batch.identity`.
        digest: of the input's content, decompressed.
        lines: how many lines the input has.
        nbytes: how many bytes the input has, decompressed.
    """

    format: int
    started: int
    identity: dict[str, str]
    digest: str
    lines: int
    nbytes: int


@dataclass
class Totals:
    """Counts over all starts of a run.

    Attributes:
        done: results in the output.
        failed: results in the errors.
        prompt_tokens, answer_tokens: of the results in the output.
    """

    done: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def count(self, result: Result | Record) -> None:
        """Count one result."""
        self.done += result.sink == OUTPUT
        self.failed += result.sink == ERRORS
        self.prompt_tokens += result.prompt_tokens
        self.answer_tokens += result.answer_tokens


def journal_directory(output: Path) -> Path:
    """The directory of an output's journal."""
    return output.with_name(output.name + SUFFIX)


def read_header(directory: Path) -> Header | None:
    """The header of a journal; None where no run has been begun.

    Raises:
        ZppError: (INVALID) it is damaged, or of a later version; OSError: it cannot be read.
    """
    path = directory / HEADER_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        header = msgspec.json.decode(content, type=Header)
    except msgspec.DecodeError as cause:
        raise invalid_error(f"{path} is damaged: {cause}", "Use --restart to begin anew.") from cause
    if header.format != FORMAT:
        raise invalid_error(f"{path} has format {header.format}, not {FORMAT}", "Use the zpptool that wrote it.")
    return header


def write_header(directory: Path, header: Header, files: FileOperations) -> None:
    """Write a journal's header: it is there whole or not at all.

    Raises:
        ZppError: (FAILURE) it cannot be written.
    """
    written = directory / f"{HEADER_NAME}.new"
    try:
        descriptor = files.open(written)
        try:
            files.truncate(descriptor, 0)
            append_all(files, descriptor, msgspec.json.encode(header) + b"\n")
            files.sync(descriptor)
        finally:
            files.close(descriptor)
        files.replace(written, directory / HEADER_NAME)
        files.sync_directory(directory)
    except OSError as cause:
        raise write_error(directory / HEADER_NAME, cause) from cause


def write_error(path: Path, cause: OSError) -> ZppError:
    """The error for a file that cannot be written."""
    reason = os.strerror(cause.errno) if cause.errno else str(cause)
    return ZppError(f"{path} cannot be written: {reason}", _HINTS.get(cause.errno or 0, _HINT))


@dataclass
class _Sink:
    """A file that results are appended to.

    Attributes:
        path: of the file.
        descriptor: of the open file.
        size: its proven size in bytes.
    """

    path: Path
    descriptor: int
    size: int = 0


class Journal:
    """A journal that is open for this run, with output and errors cut to what it proves.

    Attributes:
        done: the lines that have a result.
        totals: of all results.
        failed: whether a commit has failed; nothing more can be committed then.

    Args:
        directory: of the journal; it has a header.
        output: the file of results.
        errors: the file of errors.
        files: the file operations.

    Raises:
        ZppError: (INVALID) output or errors are not what the journal proves; (FAILURE) a file cannot be written.
    """

    def __init__(self, directory: Path, output: Path, errors: Path, files: FileOperations) -> None:
        self._files = files
        self.done = DoneLines()
        self.totals = Totals()
        self.failed = False
        self._sinks: list[_Sink] = []
        self._records = _Sink(directory / RECORDS_NAME, -1)
        try:
            for path in (output, errors):
                self._sinks.append(_Sink(path, files.open(path)))
            self._records.descriptor = files.open(self._records.path)
            self._recover()
            for parent in {output.absolute().parent, errors.absolute().parent, directory.absolute()}:
                files.sync_directory(parent)
        except OSError as cause:
            self.close()
            raise write_error(output, cause) from cause
        except BaseException:
            self.close()
            raise

    def commit(self, results: Sequence[Result]) -> None:
        """Append results, and return once they are safe. After a failure it must not be called again.

        After an error nothing of them counts: what was written of them is cut off again, as far as that is possible,
        and otherwise when the run is continued.

        Raises:
            ZppError: (FAILURE) a file cannot be written.
        """
        contents: list[list[bytes]] = [[], []]
        ends = [sink.size for sink in self._sinks]
        records = []
        for result in results:
            contents[result.sink].append(result.content)
            ends[result.sink] += len(result.content)
            records.append(record_of(result, ends[result.sink]).encoded())
        path = self._records.path
        try:
            for sink, parts in zip(self._sinks, contents, strict=True):
                if parts:
                    path = sink.path
                    append_all(self._files, sink.descriptor, b"".join(parts))
                    self._files.sync(sink.descriptor)
            path = self._records.path
            append_all(self._files, self._records.descriptor, b"".join(records))
            self._files.sync(self._records.descriptor)
        except OSError as cause:
            self.failed = True
            self._cut_all()
            raise write_error(path, cause) from cause
        for sink, end in zip(self._sinks, ends, strict=True):
            sink.size = end
        self._records.size += len(records) * RECORD_BYTES
        for result in results:
            self.done.add(result.line.number)
            self.totals.count(result)

    def close(self) -> None:
        """Close the files."""
        for sink in (*self._sinks, self._records):
            if sink.descriptor >= 0:
                self._files.close(sink.descriptor)
                sink.descriptor = -1

    def _recover(self) -> None:
        """Read the records, compare the two files with them, and cut off what is not proven."""
        last: dict[int, tuple[int, Record]] = {}
        with open(self._records.path, "rb") as stream:
            for record in proven(stream):
                if not self.done.add(record.number):
                    raise invalid_error(
                        f"{self._records.path} has two results of line {record.number}", "Use --restart to begin anew."
                    )
                self.totals.count(record)
                self._records.size += RECORD_BYTES
                start = self._sinks[record.sink].size
                self._sinks[record.sink].size = record.end
                last[record.sink] = start, record
        for number, sink in enumerate(self._sinks):
            _refuse_changed(sink, last.get(number))
        for sink in (*self._sinks, self._records):
            if os.fstat(sink.descriptor).st_size != sink.size:
                self._files.truncate(sink.descriptor, sink.size)
            self._files.sync(sink.descriptor)

    def _cut_all(self) -> None:
        """Cut the files to what is safe; the records first, so that they never prove what is not there."""
        for sink in (self._records, *self._sinks):
            try:
                self._files.truncate(sink.descriptor, sink.size)
            except OSError:
                return


def _refuse_changed(sink: _Sink, last: tuple[int, Record] | None) -> None:
    """Refuse a file that is shorter than proven, or whose last proven result is another one."""
    size = os.fstat(sink.descriptor).st_size
    fault = ""
    if size < sink.size:
        fault = f"has {size} bytes, but its journal proves {sink.size}"
    elif last is not None:
        start, record = last
        if zlib.crc32(os.pread(sink.descriptor, record.end - start, start)) != record.crc:
            fault = "does not end as its journal proves"
    if fault:
        raise invalid_error(
            f"{sink.path} {fault}: it was changed or replaced since", "Restore it, or use --restart to begin anew."
        )
