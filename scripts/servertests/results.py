# SPDX-License-Identifier: Apache-2.0
"""What came of each test: a line of JSON each, the last one of a side and a test counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

PASSED, FAILED, TIMEOUT, ERROR, SKIPPED, UNMET = "passed", "failed", "timeout", "error", "skipped", "unmet"
OUTCOMES = (PASSED, FAILED, TIMEOUT, ERROR, SKIPPED, UNMET)
"""`error` is a fixture that failed, `unmet` a server that lacks an argument that the test asks for."""


@dataclass(frozen=True)
class Result:
    """One test on one side.

    Attributes:
        side: what answered.
        test: its id, relative to `tests/entrypoints`.
        outcome: one of `OUTCOMES`.
        seconds: that it took, fixtures included.
        reason: the first lines of what was raised; empty if it passed.
        version: of vLLM, whose test it is.
    """

    side: str
    test: str
    outcome: str
    seconds: float
    reason: str = ""
    version: str = ""


def append(path: Path, result: Result) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(result)) + "\n")


def read(path: Path) -> list[Result]:
    """All lines; none if there is no such file."""
    if not path.exists():
        return []
    return [Result(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def latest(results: Iterable[Result], side: str) -> dict[str, Result]:
    """The last result of each test on a side."""
    return {result.test: result for result in results if result.side == side}
