# SPDX-License-Identifier: Apache-2.0
"""Runs checks one after the other within a budget of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from gpucheck.check import Bench, Check, Failed, Outcome, Refused, Verdict, why_not

PATIENCE = 4
"""How many times its estimate a check may take: one that hangs leaves time for the others."""


def chosen(checks: Sequence[Check], only: Sequence[str]) -> list[Check]:
    """The checks with these names, or whose names begin with one of them and a hyphen; without names, all.

    Raises:
        ValueError: there is none for a name.
    """
    for name in only:
        if not any(_is_named(check, name) for check in checks):
            raise ValueError(f"there is no check {name!r}; there are {', '.join(check.name for check in checks)}")
    return [check for check in checks if not only or any(_is_named(check, name) for name in only)]


def _is_named(check: Check, name: str) -> bool:
    return check.name == name or check.name.startswith(f"{name}-")


def run_checks(
    checks: Sequence[Check], bench: Bench, budget_s: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[Outcome]:
    """Run the checks that this machine can run, as long as there is time. Each outcome is returned when it is known.

    Args:
        checks: in the order in which they are run.
        bench: what each gets, apart from its time limit.
        budget_s: seconds for all of them.
        clock: seconds that pass.
    """
    began = clock()
    for check in checks:
        left_s = budget_s - (clock() - began)
        reason = why_not(check, bench.machine)
        if not reason and left_s < check.least_s:
            reason = f"no time: it takes about {check.least_s:.0f} s, {max(left_s, 0):.0f} s of the budget are left"
        if reason:
            yield Outcome(check.name, Verdict.SKIPPED, reason, 0.0, {})
        else:
            yield _run(check, bench._replace(limit_s=min(left_s, PATIENCE * check.least_s)), clock)


def _run(check: Check, bench: Bench, clock: Callable[[], float]) -> Outcome:
    began = clock()
    verdict, detail, measures = Verdict.PASSED, "", {}
    try:
        measures = check.run(bench)
    except Refused as refused:
        verdict, detail = Verdict.SKIPPED, str(refused)
    except Exception as fault:  # a check that cannot be completed has not passed
        verdict, detail = Verdict.FAILED, str(fault) if isinstance(fault, Failed) else repr(fault)
    return Outcome(check.name, verdict, detail, round(clock() - began, 1), measures)
