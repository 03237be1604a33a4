# SPDX-License-Identifier: Apache-2.0
"""Published and large instances, by benchmarks/planner.py in a process of its own: value, processor time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks/planner.py"
MOST_SECONDS, MOST_MB = 5.0, 300.0


def rows_of(part: str, timeout_s: float = 110) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, BENCHMARK, part, "--json"], capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)[part]
    for row in rows:
        assert row["seconds"] < MOST_SECONDS, row
        assert row.get("mb", 0) < MOST_MB, row
    return rows


def test_published_instances_are_solved_exactly() -> None:
    rows = rows_of("published")
    assert [round(row["rate"], 2) for row in rows] == [286.59, 2045.64, 5441.14]
    for row in rows:
        assert row["rate"] == pytest.approx(row["expected"], rel=1e-6)
        assert row["gap"] == 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_64_devices_of_8_kinds_and_128_layers_take_seconds() -> None:
    rows = rows_of("large", timeout_s=800)
    assert len(rows) == 8
    assert all(row["gap"] < 0.1 for row in rows)
    assert sum(row["gap"] == 0 for row in rows) >= 4
