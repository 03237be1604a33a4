# SPDX-License-Identifier: Apache-2.0
"""The results as a part of docs/compatibility.md: how many pass on each side, and every difference. Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from servertests.results import FAILED, PASSED, SKIPPED, UNMET, Result, latest
from servertests.sides import EMBEDDED, SIDES, STAGES, UNSPLIT

BEGIN, END = "<!-- server tests: begin -->", "<!-- server tests: end -->"
MESSAGE = re.compile(r"""['"]message['"]: (?P<quote>['"])(?P<text>.*?)(?P=quote)[,}]""")
Results = Mapping[str, Mapping[str, Result]]
"""By side and test."""


def by_side(results: Iterable[Result], sides: Sequence[str] = SIDES) -> dict[str, dict[str, Result]]:
    """The last result of each test on each side."""
    every = list(results)
    return {side: latest(every, side) for side in sides}


def lost(sides: Results, side: str) -> list[Result]:
    """What passes unsplit and not on a side; a test without a result there is left out."""
    unsplit, there = sides[UNSPLIT], sides[side]
    passed = [test for test, result in unsplit.items() if result.outcome == PASSED]
    return [there[test] for test in sorted(passed) if test in there and there[test].outcome != PASSED]


def reason_of(result: Result) -> str:
    """Why it did not pass, in a line: the server's own words if it refused, else what was raised."""
    found = MESSAGE.search(result.reason)
    text = found["text"] if found else (result.reason.splitlines() or [""])[0]
    return text if len(text) <= 140 else text[:137] + "..."


def render(sides: Results, date: str) -> str:
    """The part of the page between the markers."""
    version = next((result.version for result in sides[UNSPLIT].values()), "")
    lines = [
        f"vLLM {version}, run on {date} with SmolLM2-135M-Instruct in float32.",
        "",
        f"| tests of | run | {' | '.join(SIDES)} |",
        f"|---|---|{'---|' * len(SIDES)}",
    ]
    run = [test for test, result in sides[UNSPLIT].items() if result.outcome not in (SKIPPED, UNMET)]
    modules = Counter(_module(test) for test in run)
    for module in sorted(modules):
        passed = [str(_passed(sides[side], module)) for side in SIDES]
        lines.append(f"| `{module}` | {modules[module]} | {' | '.join(passed)} |")
    lines.append(f"| all | {modules.total()} | {' | '.join(str(_passed(sides[side])) for side in SIDES)} |")
    lines += ["", "What passes unsplit and not on stages:", ""]
    rows = [f"| `{one.test}` | {one.outcome} | {_cell(reason_of(one))} |" for one in lost(sides, STAGES)]
    lines += ["| test | outcome | reason |", "|---|---|---|", *rows] if rows else ["Nothing."]
    lines += ["", "What passes unsplit and not on the embedded engine, by what it answers:", ""]
    kinds = Counter(_kind(one) for one in lost(sides, EMBEDDED))
    kinds_by_count = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    rows = [f"| {_cell(kind)} | {count} |" for kind, count in kinds_by_count]
    lines += ["| answer | tests |", "|---|---|", *rows] if rows else ["Nothing."]
    return "\n".join(lines)


def _kind(result: Result) -> str:
    """What a refusal is about; tests that fail in their own assertions count as one kind."""
    text = reason_of(result)
    if MESSAGE.search(result.reason) or result.outcome != FAILED:
        return text
    return "an answer that the test does not accept"


def _passed(results: Mapping[str, Result], module: str = "") -> int:
    return sum(result.outcome == PASSED and module in ("", _module(test)) for test, result in results.items())


def _module(test: str) -> str:
    return test.partition("::")[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
