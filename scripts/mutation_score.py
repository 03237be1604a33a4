# SPDX-License-Identifier: Apache-2.0
"""Scores the witness on the catalogue of faults (tests/mutations) and writes the scoreboard of docs/validation.md.

    python scripts/mutation_score.py                  all faults; docs/mutations.json and the table are written
    python scripts/mutation_score.py --only wire      those whose name contains the word; prints, writes nothing
    python scripts/mutation_score.py --state FILE     all faults, and goes on where a run that was stopped had come to

A small model in three stages runs as real processes, into which each fault is switched on and off again. Between groups
of faults the pipeline runs without any: a difference there is a false alarm.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

from page_part import replace_part  # noqa: E402

RECORD, PAGE = ROOT / "docs/mutations.json", ROOT / "docs/validation.md"
BEGIN, END = "<!-- mutations: begin -->", "<!-- mutations: end -->"
MEASURES = ("found", "stage", "layer", "tap", "cause", "parity")
HEADING = (
    "| group | kinds | faults | found | stage | layer | operation | cause | token parity |",
    "|---|---|---|---|---|---|---|---|---|",
)
SPREAD = 4
"""Faults are tried in an order in which a run that is stopped has tried some of every group."""
CLEAN_EVERY = 2
"""A run without a fault before each so many faults."""


def table(record: Mapping[str, Any]) -> str:
    """The scoreboard: a row a group, and their sum."""
    faults = record["faults"]
    groups = sorted({fault["group"] for fault in faults})
    rows = [_row(group, [fault for fault in faults if fault["group"] == group]) for group in groups]
    missed = [fault for fault in faults if not all(fault[measure] for measure in MEASURES[:-1])]
    listed = [f"* {fault['name']}: {', '.join(_wrong(fault))}; said: {fault['said']}" for fault in missed]
    clean = record["clean"]
    lines = (
        f"Run of {record['date']}: {len(faults)} faults of {len({(f['group'], f['kind']) for f in faults})} kinds, of"
        f" {record['catalogue']} faults in the catalogue;"
        f" {clean['alarms']} alarms in {clean['runs']} runs without a fault.",
        "",
        *HEADING,
        *rows,
        _row("**all**", faults),
        *(["", "Where it was not right:", "", *listed] if listed else []),
    )
    return "\n".join(lines)


def _row(name: str, faults: Sequence[Mapping[str, Any]]) -> str:
    kinds = len({(fault["group"], fault["kind"]) for fault in faults})
    shares = [f"{100 * sum(fault[measure] for fault in faults) / len(faults):.0f} %" for measure in MEASURES]
    return f"| {name} | {kinds} | {len(faults)} | {' | '.join(shares)} |"


def _wrong(fault: Mapping[str, Any]) -> list[str]:
    return [f"{measure} wrong" for measure in MEASURES[1:-1] if not fault[measure]] if fault["found"] else ["not found"]


def run(model: Path, only: str = "", every: int = 1, state: Path | None = None) -> dict[str, Any]:
    """Score the faults whose name contains `only`, each `every`-th of them.

    Args:
        model: a small model of four layers.
        only, every: which faults.
        state: a file that is read first, if there is one, and written after each fault.
    """
    from dataclasses import asdict
    from datetime import UTC, datetime

    from tests.mutations.catalogue import CATALOGUE
    from tests.mutations.trial import mutated_pipeline

    chosen = [mutation for mutation in CATALOGUE if only in mutation.name][::every]
    chosen = [mutation for start in range(SPREAD) for mutation in chosen[start::SPREAD]]
    date = str(datetime.now(UTC).date())
    record: dict[str, Any] = {
        "date": date, "catalogue": len(CATALOGUE), "clean": {"runs": 0, "alarms": 0}, "faults": []
    }  # fmt: skip
    if state is not None and state.is_file():
        record = json.loads(state.read_text())
    faults, clean = record["faults"], record["clean"]
    done = {fault["name"] for fault in faults}
    with tempfile.TemporaryDirectory() as scratch, mutated_pipeline(model, Path(scratch)) as pipeline:
        for number, mutation in enumerate(chosen, start=1):
            if mutation.name in done:
                continue
            if number % CLEAN_EVERY == 0:
                clean["runs"] += 1
                clean["alarms"] += pipeline.clean().verdict != "identical"
            score = pipeline.score(mutation)
            faults.append(asdict(score))
            print(f"{number}/{len(chosen)} {'ok ' if score.right else 'BAD'} {score.name} | {score.said}", flush=True)
            if state is not None:
                state.write_text(json.dumps(record))
    return record


def main() -> None:
    """Score, print the table, and write it if all faults were scored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words in the names of the faults to score")
    parser.add_argument("--every", type=int, default=1, help="score each so many-th fault only")
    parser.add_argument("--state", type=Path, help="the file to go on from")
    options = parser.parse_args()
    from tests.mutations.model import small_model

    with tempfile.TemporaryDirectory() as scratch:
        record = run(small_model(Path(scratch)), options.only, options.every, options.state)
    print(table(record))
    if not options.only and options.every == 1:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        PAGE.write_text(replace_part(PAGE.read_text(), table(record), BEGIN, END))


if __name__ == "__main__":
    main()
