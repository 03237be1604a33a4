# SPDX-License-Identifier: Apache-2.0
"""The witness finds faults that are injected into a running pipeline, and says where and what they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("httpx")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import mutation_score  # noqa: E402

from tests.mutations.catalogue import CATALOGUE, KINDS  # noqa: E402
from tests.mutations.model import small_model  # noqa: E402

pytestmark = pytest.mark.torch
SHORT = 10
"""One in so many faults is tried in a short run."""


def test_the_catalogue_names_each_fault_once_and_has_many_kinds() -> None:
    assert len({mutation.name for mutation in CATALOGUE}) == len(CATALOGUE) >= 200
    assert len(KINDS) >= 70
    assert len({group for group, _kind in KINDS}) >= 8


def test_the_scoreboard_is_that_of_the_recorded_run_of_all_faults() -> None:
    record = json.loads(mutation_score.RECORD.read_text())
    page = mutation_score.PAGE.read_text()
    shown = page[page.index(mutation_score.BEGIN) + len(mutation_score.BEGIN) : page.index(mutation_score.END)]
    assert shown.strip() == mutation_score.table(record).strip(), "run scripts/mutation_score.py"
    assert {fault["name"] for fault in record["faults"]} <= {mutation.name for mutation in CATALOGUE}
    assert record["catalogue"] == len(CATALOGUE)


@pytest.mark.parametrize("every", [SHORT, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.timeout(1800)
def test_injected_faults_are_found_and_named(every: int, tmp_path: Path) -> None:
    record = mutation_score.run(small_model(tmp_path), every=every)
    faults = record["faults"]
    assert record["clean"]["alarms"] == 0 < record["clean"]["runs"]
    assert [fault["name"] for fault in faults if not fault["found"]] == []
    for measure, least in (("stage", 1.0), ("layer", 0.98), ("tap", 0.95), ("cause", 0.9)):
        right = sum(fault[measure] for fault in faults) / len(faults)
        wrong = [(fault["name"], fault["said"]) for fault in faults if not fault[measure]]
        assert right >= least, f"{measure}: {right:.2f}, {wrong}"
    assert sum(fault["parity"] for fault in faults) < len(faults), "tokens alone do not show them all"
