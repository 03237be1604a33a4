# SPDX-License-Identifier: Apache-2.0
"""Linear and integer programmes, solved by HiGHS. Only planning of several pipelines needs it (extra `planner`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from zpptool.errors import usage_error


def maximised(
    gains: Sequence[float],
    entries: Sequence[Sequence[int]],
    limits: Sequence[float],
    most: float,
    *,
    whole: bool,
) -> tuple[list[float], list[float]]:
    """Maximise the sum of gains of columns that together keep limits.

    Args:
        gains: of one of each column.
        entries: what one of each column takes of each limit.
        limits: of the sums over all columns.
        most: how many of each column there may be.
        whole: whether only whole columns count.

    Returns:
        how much of each column, and the price of each limit, by which the sum would rise; prices are 0 with `whole`.

    Raises:
        ZppError: (USAGE) highspy is not installed.
    """
    solver, highspy = _quiet_solver()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    for limit in limits:
        solver.addRow(-highspy.kHighsInf, limit, 0, [], [])
    for number, (gain, column) in enumerate(zip(gains, entries, strict=True)):
        rows = [row for row, taken in enumerate(column) if taken]
        solver.addCol(-gain, 0.0, most, len(rows), rows, [float(column[row]) for row in rows])
        if whole:
            solver.changeColIntegrality(number, highspy.HighsVarType.kInteger)
    solver.run()
    solution = solver.getSolution()
    prices = [0.0] * len(limits) if whole else [max(0.0, -dual) for dual in solution.row_dual]
    return list(solution.col_value), prices


def _quiet_solver() -> tuple[Any, Any]:
    """A solver and its module. The first solver of a process prints a line on stdout, where only results belong."""
    try:
        import highspy
    except ImportError as cause:
        raise usage_error(
            "several pipelines are planned with highspy, which is not installed", "pip install 'zpptool[planner]'"
        ) from cause
    module: Any = highspy
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        return module.Highs(), module
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
