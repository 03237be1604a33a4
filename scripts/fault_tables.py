# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of attacks and faults in docs/security.md and docs/recovery.md, from one run of their tests.

    python -m pytest tests/hostile tests/chaos --junitxml=faults.xml
    python scripts/fault_tables.py faults.xml

Every test of those directories has one row. Its figures are what it records with pytest's `record_property`. They are
kept in docs/faults.json, which a test compares with the tables, and with the tests that there are.
"""

from __future__ import annotations

import ast
import json
import sys
import xml.etree.ElementTree as xml
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs/faults.json"
PAGES = {"hostile": ROOT / "docs/security.md", "chaos": ROOT / "docs/recovery.md"}
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
HEADING = ("| what was tried, and holds | cases | figures of one run | test |", "|---|---|---|---|")


def tests_of(directory: Path) -> Iterator[tuple[str, str]]:
    """File name and test name of every test in a directory, in order."""
    for path in sorted(directory.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield path.name, node.name


def read_run(reports: Sequence[Path]) -> dict[str, Any]:
    """The record of one run: for each directory, the tests with their cases and figures.

    Args:
        reports: of pytest, in the format of JUnit, one or several that make up the run.

    Raises:
        ValueError: a test failed, or none ran.
    """
    suites = [next(xml.parse(report).getroot().iter("testsuite")) for report in reports]
    record: dict[str, Any] = {"date": suites[-1].attrib["timestamp"][:10], **{kind: [] for kind in PAGES}}
    for case in chain.from_iterable(suite.iter("testcase") for suite in suites):
        if case.find("failure") is not None or case.find("error") is not None:
            raise ValueError(f"{case.attrib['classname']}::{case.attrib['name']} failed")
        if case.find("skipped") is not None:
            continue
        kind, module = case.attrib["classname"].split(".")[-2:]
        name = case.attrib["name"].partition("[")[0]
        figures = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        known = next((row for row in record[kind] if (row["file"], row["test"]) == (f"{module}.py", name)), None)
        if known is None:
            known = {"file": f"{module}.py", "test": name, "cases": 0, "figures": []}
            record[kind].append(known)
        known["cases"] += 1
        known["figures"] += [figures] if figures else []
    if not any(record[kind] for kind in PAGES):
        raise ValueError("the reports hold no test of tests/hostile or tests/chaos")
    return record


def table(kind: str, record: Mapping[str, Any]) -> str:
    """One table, with the markers around it."""
    rows = [
        f"| {row['test'].removeprefix('test_').replace('_', ' ')} | {row['cases']} | {_figures(row['figures'])}"
        f" | `{kind}/{row['file']}` |"
        for row in record[kind]
    ]
    return "\n".join((BEGIN, f"Run of {record['date']}.", "", *HEADING, *rows, END))


def written_table(page: Path) -> str:
    """The table that a page has now, with its markers."""
    text = page.read_text()
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def _figures(cases: Sequence[Mapping[str, str]]) -> str:
    return "; ".join(", ".join(f"{name}: {value}" for name, value in figures.items()) for figures in cases)


def main() -> None:
    """Write the record and both tables."""
    record = read_run([Path(name) for name in sys.argv[1:]])
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    for kind, page in PAGES.items():
        page.write_text(page.read_text().replace(written_table(page), table(kind, record)))


if __name__ == "__main__":
    main()
