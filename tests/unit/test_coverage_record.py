# SPDX-License-Identifier: Apache-2.0
"""The record of each release of transformers is updated class by class, and the page shows where releases differ."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.insert(0, str(ROOT / "scripts"))

import upstream
from families.case import Outcome
from families.record import changes, read_outcomes, read_records, record_path, update_record
from families.table import coverage_table

pytestmark = pytest.mark.torch

OLD, NEW = "5.9.0", "5.18.0"


def outcome(
    name: str, embedded: str = "identical", structure: str = "right", reason: str = "", images: str = ""
) -> Outcome:
    return Outcome(name, name.lower(), "model.layers", structure, "all", embedded, images, reason, "2026-11-30")


def test_only_the_classes_that_were_tried_are_replaced(tmp_path: Path) -> None:
    path = record_path(tmp_path, NEW)
    assert update_record(path, [outcome("B"), outcome("A")]) == [
        "A: not there -> right, identical",
        "B: not there -> right, identical",
    ]
    assert update_record(path, [outcome("B", "different", reason="[1] for [2]"), outcome("C", "", "refused")]) == [
        "B: right, identical -> right, different ([1] for [2])",
        "C: not there -> refused, not run",
    ]
    assert update_record(path, [outcome("A")]) == []
    assert list(read_outcomes(path)) == ["A", "B", "C"]


def test_a_class_that_is_gone_is_a_change() -> None:
    assert list(changes({"A": outcome("A")}, {})) == ["A: right, identical -> not there"]


def test_the_page_names_the_releases_where_they_differ(tmp_path: Path) -> None:
    update_record(record_path(tmp_path, OLD), [outcome("A"), outcome("B")])
    update_record(
        record_path(tmp_path, NEW),
        [outcome("A"), outcome("B", "refused", reason="why | so"), outcome("C", images="images run")],
    )
    (tmp_path / "coverage-vllm.jsonl").write_text("{}\n")
    records = read_records(tmp_path)
    assert list(records) == [OLD, NEW]
    page = coverage_table(records, {})
    assert "| 5.9.0 | 2 | 2 | 0 | 0 | 0 | 2 | 0 | 0 | 2026-11-30 |\n| 5.18.0 | 3 | 3 | 0 | 0 | 0 | 2 | 1 | 0 |" in page
    assert "| A | a | `model.layers` | right | identical |  | not run |  |" in page
    assert "| B | b | `model.layers` | right | 5.9.0 identical, 5.18.0 refused |  | not run | why \\| so |" in page
    assert "| C | c | `model.layers` | 5.18.0 right | 5.18.0 identical | images run | not run |  |" in page


def test_the_committed_page_is_made_from_the_committed_records() -> None:
    from families import vllm_outcome

    page = coverage_table(read_records(ROOT / "docs"), vllm_outcome.read_outcomes())
    assert page == (ROOT / "docs/coverage.md").read_text(), "run scripts/coverage_report.py --table-only"


@pytest.mark.parametrize(
    ("required", "release"), [("x>=5.18,<6", "5.18.0"), ("x<6,>=5.20.2", "5.20.2"), ("x>=5", "5.0.0")]
)
def test_the_oldest_allowed_release_is_the_lower_bound(required: str, release: str) -> None:
    assert upstream.oldest(Requirement(required)) == release


def test_what_is_tried_is_what_this_project_requires() -> None:
    assert upstream.requirement().name == "transformers"
    assert upstream.requirement().specifier.contains(upstream.oldest(upstream.requirement()))
