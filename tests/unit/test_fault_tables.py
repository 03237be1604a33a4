# SPDX-License-Identifier: Apache-2.0
"""The tables of attacks and faults are those of the recorded run, and have a row for every test that there is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import fault_tables  # noqa: E402

REPORT = """\
<testsuites><testsuite timestamp="2026-11-30T10:00:00+00:00">
<testcase classname="tests.chaos.test_a" name="test_one[x]"><properties><property name="kills" value="3"/></properties>
</testcase><testcase classname="tests.chaos.test_a" name="test_one[y]"/>
<testcase classname="tests.hostile.test_b" name="test_two">{outcome}</testcase>
</testsuite></testsuites>
"""


@pytest.mark.parametrize("kind", list(fault_tables.PAGES))
def test_a_table_is_that_of_the_recorded_run_and_names_every_test(kind: str) -> None:
    record = json.loads(fault_tables.RECORD.read_text())
    assert fault_tables.written_table(fault_tables.PAGES[kind]) == fault_tables.table(kind, record)
    recorded = {(row["file"], row["test"]) for row in record[kind]}
    assert recorded == set(fault_tables.tests_of(ROOT / "tests" / kind)), "run scripts/fault_tables.py"


def test_cases_and_figures_of_a_test_are_one_row(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT.format(outcome=""))
    record = fault_tables.read_run([tmp_path / "report.xml"])
    assert record["chaos"] == [{"file": "test_a.py", "test": "test_one", "cases": 2, "figures": [{"kills": "3"}]}]
    assert "| one | 2 | kills: 3 | `chaos/test_a.py` |" in fault_tables.table("chaos", record)


def test_a_failed_run_is_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT.format(outcome="<failure/>"))
    with pytest.raises(ValueError, match="test_b::test_two failed"):
        fault_tables.read_run([tmp_path / "report.xml"])
