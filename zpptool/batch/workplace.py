# SPDX-License-Identifier: Apache-2.0
"""The files of one run: its output, its errors, and the directory of its journal, which one process uses at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zpptool.batch.journal import HEADER_NAME, journal_directory, write_error
from zpptool.checkpoint.output_lock import Held, hold
from zpptool.errors import ZppError, invalid_error, usage_error

LOCK_SUFFIX = ".lock"
ERRORS_SUFFIX = ".errors.jsonl"


@dataclass(frozen=True)
class Workplace:
    """The files of a run.

    Attributes:
        output: results.
        errors: results of lines that failed.
        journal: the journal's directory.
    """

    output: Path
    errors: Path
    journal: Path


def workplace_of(output: Path, errors: Path | None) -> Workplace:
    """The files of the run with that output; without `errors`, they are beside it.

    Raises:
        ZppError: (USAGE) output and errors are one file, or the output's directory does not exist.
    """
    beside = output.with_name(output.name.removesuffix(".jsonl") + ERRORS_SUFFIX)
    place = Workplace(output, errors or beside, journal_directory(output))
    if place.errors.absolute() == output.absolute():
        raise usage_error("--output-file and --errors are the same file", "Name two.")
    for path in (place.output, place.errors):
        if not path.absolute().parent.is_dir():
            raise usage_error(f"{path.parent} is no directory, so {path.name} cannot be written there")
        if path.exists() and not path.is_file():
            raise usage_error(f"{path} is not a regular file", "Name a file that is to be created.")
    return place


@contextmanager
def occupied(place: Workplace, *, restart: bool) -> Iterator[None]:
    """Use the files of a run for the duration of the block; with `restart` what there was is removed first.

    Raises:
        ZppError: (FAILURE) another process uses them; (INVALID) there is an output without a journal; (FAILURE) a file
            cannot be written.
    """
    lock = place.journal.with_name(place.journal.name + LOCK_SUFFIX)
    try:
        with hold(lock):
            if restart:
                _remove(place)
            _refuse_foreign(place)
            place.journal.mkdir(exist_ok=True)
            yield
    except Held as cause:
        raise ZppError(
            f"another run-batch is writing {place.output}", "Wait for it, or name another --output-file."
        ) from cause
    except OSError as cause:
        raise write_error(Path(cause.filename or place.journal), cause) from cause


def _remove(place: Workplace) -> None:
    """Remove the header first: a removal that is interrupted leaves no run that could be continued."""
    (place.journal / HEADER_NAME).unlink(missing_ok=True)
    if place.journal.exists():
        shutil.rmtree(place.journal)
    place.output.unlink(missing_ok=True)
    place.errors.unlink(missing_ok=True)


def _refuse_foreign(place: Workplace) -> None:
    """Refuse files that no journal accounts for: they would be cut to nothing."""
    if (place.journal / HEADER_NAME).exists():
        return
    for path in (place.output, place.errors):
        if path.exists() and path.stat().st_size:
            raise invalid_error(
                f"{path} exists, and has no journal to continue with",
                "Name another file, or use --restart to overwrite it.",
            )
