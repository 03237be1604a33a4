# SPDX-License-Identifier: Apache-2.0
"""The records of model classes on vLLM are complete, and docs/coverage.md agrees with them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from families.vllm_outcome import (
    IDENTICAL,
    NO_PIPELINE,
    RESULTS,
    VERDICTS,
    WRONG,
    VllmOutcome,
    read_outcomes,
    write_outcomes,
)

PAGE = ROOT / "docs/coverage.md"
ROW = re.compile(r"\| (?P<name>\w+) \|(?:[^|]*\|){5} (?P<vllm>(?:\\\||[^|])*?) \|")


@pytest.fixture(scope="module")
def cells() -> dict[str, str]:
    """The vLLM column of the page, by class."""
    rows = [ROW.match(line) for line in PAGE.read_text().splitlines()]
    return {row["name"]: row["vllm"] for row in rows if row and row["name"] != "class"}


def test_every_record_is_complete() -> None:
    lines = RESULTS.read_text().splitlines()
    outcomes = read_outcomes()
    assert len(lines) == len(outcomes) > 0
    for outcome in outcomes.values():
        assert outcome.verdict in VERDICTS, outcome
        assert outcome.reason or outcome.verdict in (IDENTICAL, NO_PIPELINE), outcome
        assert date.fromisoformat(outcome.date), outcome
        assert outcome.versions.startswith("vllm "), outcome
        assert not re.search(r"/(tmp|root|home)/", outcome.reason), outcome


def test_no_recorded_pipeline_failed_or_gave_other_tokens() -> None:
    assert {outcome.name for outcome in read_outcomes().values() if outcome.verdict in WRONG} == set()


def test_the_page_agrees_with_the_record_of_each_class(cells: dict[str, str]) -> None:
    outcomes = read_outcomes()
    assert len(cells) >= 225
    assert outcomes.keys() <= cells.keys()
    for name, cell in cells.items():
        verdict = outcomes[name].verdict if name in outcomes else "not run"
        assert re.match(rf"{verdict}($| \(|:)", cell), (name, cell, verdict)


def test_the_page_counts_the_records() -> None:
    counted = {kind: int(count) for kind, count in re.findall(r"^\* \*([\w ]+)\* \((\d+)\)", PAGE.read_text(), re.M)}
    assert counted == Counter(outcome.verdict for outcome in read_outcomes().values())


def test_the_last_outcome_of_a_class_counts_and_outcomes_are_sorted_by_name(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    write_outcomes({"B": VllmOutcome("B", IDENTICAL), "A": VllmOutcome("A", WRONG[0], reason="why")}, results)
    assert list(read_outcomes(results)) == ["A", "B"]
    with results.open("a") as stream:
        stream.write('{"name": "A", "verdict": "identical"}\n')
    assert read_outcomes(results)["A"].verdict == IDENTICAL
