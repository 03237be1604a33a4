# SPDX-License-Identifier: Apache-2.0
"""What was found out about the classes of each release of transformers: one file for each release, in docs/.

The coverage table is made from these files, so that classes which are tried again replace their own lines only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from families.case import Outcome

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs"
_NAME = re.compile(r"coverage-transformers-(\d+(?:\.\d+)*)\.jsonl")

Record = dict[str, Outcome]
"""Outcomes by class name."""


def record_path(records: Path, version: str) -> Path:
    """The file of one release."""
    return records / f"coverage-transformers-{version}.jsonl"


def read_outcomes(path: Path) -> Record:
    """The outcomes in a file of one line each; of a class that is there twice, the later one."""
    lines = path.read_text().splitlines() if path.is_file() else []
    outcomes = (Outcome(**json.loads(line)) for line in lines)
    return {outcome.name: outcome for outcome in outcomes}


def read_records(records: Path) -> dict[str, Record]:
    """Every release's record by its version, from the oldest release to the newest."""
    found = ((match[1], path) for path in records.iterdir() if (match := _NAME.fullmatch(path.name)))
    return {version: read_outcomes(path) for version, path in sorted(found, key=lambda entry: _order(entry[0]))}


def update_record(path: Path, outcomes: Iterable[Outcome]) -> list[str]:
    """Replace these classes' outcomes in a record, and return what has changed."""
    before = read_outcomes(path)
    after = before | {outcome.name: outcome for outcome in outcomes}
    lines = (json.dumps(after[name].as_json()) + "\n" for name in sorted(after))
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(lines))
    os.replace(temporary, path)
    return list(changes(before, after))


def changes(before: Mapping[str, Outcome], after: Mapping[str, Outcome]) -> Iterator[str]:
    """A line for each class that is new, that is no longer there, or whose outcome differs."""
    for name in sorted({*before, *after}):
        old, new = (_words(outcomes.get(name)) for outcomes in (before, after))
        if old != new:
            reason = after[name].reason if name in after else ""
            yield f"{name}: {old or 'not there'} -> {new or 'not there'}{f' ({reason})' if reason else ''}"


def _words(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    images = f", {outcome.images}" if outcome.images else ""
    return f"{outcome.structure}, {outcome.embedded or 'not run'}{images}"


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
