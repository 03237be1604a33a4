# SPDX-License-Identifier: Apache-2.0
"""The outcomes as JSON, and as a part of docs/compatibility.md. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpucheck.check import Check, Machine, Outcome, Verdict

BEGIN, END = "<!-- gpu check: begin -->", "<!-- gpu check: end -->"
CELL = 160
"""The longest text of a cell, in characters."""


class Report(msgspec.Struct, frozen=True):
    """One run of the script.

    Attributes:
        date: day of the run.
        machine: where it ran.
        model: directory of the checkpoint; empty for the tiny one.
        budget_s: seconds that were allowed.
        outcomes: in the order of the checks.
    """

    date: str
    machine: Machine
    model: str
    budget_s: float
    outcomes: tuple[Outcome, ...]


def as_json(report: Report) -> str:
    """The report, indented."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def line_of(outcome: Outcome) -> str:
    """One outcome for a terminal."""
    measures = ", ".join(f"{name} {value}" for name, value in outcome.measures.items())
    return f"{outcome.verdict.value:<8} {outcome.name:<20} {outcome.seconds:>6.1f} s  {outcome.detail or measures}"


def as_table(report: Report, checks: Sequence[Check]) -> str:
    """The part of the page between the markers."""
    machine = report.machine
    cards = f"{len(machine.cards)} x {machine.cards[0]}, driver {machine.driver}" if machine.cards else "no card"
    vllm = f", vLLM {machine.vllm}" if machine.vllm else ""
    about = {check.name: check.about for check in checks}
    rows = [
        f"| `{outcome.name}` | {_cell(about[outcome.name])} | {outcome.verdict.value} | {_cell(_said(outcome))} |"
        for outcome in report.outcomes
    ]
    return "\n".join(
        [
            f"{report.date}, `--device {machine.device}`, {cards}; torch {machine.torch}{vllm}, "
            f"zpptool {machine.zpptool}, {report.model or 'a tiny model of random weights'}.",
            "",
            "| check | shows | outcome | |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """1 if a check failed."""
    return int(any(outcome.verdict is Verdict.FAILED for outcome in outcomes))


def _said(outcome: Outcome) -> str:
    return outcome.detail or ", ".join(f"{name} {value}" for name, value in outcome.measures.items())


def _cell(text: str) -> str:
    line = " ".join(text.replace("|", "\\|").split())
    return line if len(line) <= CELL else line[: CELL - 3] + "..."
