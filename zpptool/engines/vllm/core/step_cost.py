# SPDX-License-Identifier: Apache-2.0
"""What a step takes on the slowest stage, fitted to the steps that have returned. Pure.

A step's time is modelled as `fixed + per_token * tokens + per_pair * pairs`, where a pair is one token that attends to
one earlier token. Results are weighted by age, so the model follows a machine whose load changes. Before anything is
measured, a fixed cost of `FIRST_TOKENS` tokens is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_TOKENS = 32.0
"""How many tokens take as long as a step's fixed cost, until steps of different sizes have been measured."""
FORGET = 0.98
"""The weight of what was measured before, for each new measurement."""
SHORTEST_S = 1e-6
"""What took less is a result that came together with the one before, and no measurement."""
_UNITS = (1.0, 64.0, 65536.0)
"""The scale of the three terms, so that the equations are well conditioned."""
_CAUTION = 1e-3
"""The weight of the assumption, against 1 for one measurement."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step takes, in seconds.

    Attributes:
        fixed: of any step.
        per_token: for each token.
        per_pair: for each pair of a token and an earlier one that it attends to.
    """

    fixed: float
    per_token: float
    per_pair: float

    def seconds(self, tokens: float, pairs: float) -> float:
        """The time of a step."""
        return self.fixed + self.per_token * tokens + self.per_pair * pairs


class StepCost:
    """Fits a `Cost` to measured steps by least squares, with no negative term."""

    def __init__(self) -> None:
        self._products = [[0.0] * 3 for _ in range(3)]
        self._targets = [0.0] * 3
        self._fitted: Cost | None = None

    def measured(self, tokens: int, pairs: int, seconds: float) -> None:
        """Take the time of a step into account, relative to its length: short steps count as much as long ones.

        Args:
            tokens: of the step.
            pairs: see `Cost.per_pair`.
            seconds: that the slowest stage took for it.
        """
        if seconds < SHORTEST_S:
            return
        row = [value / unit / seconds for value, unit in zip((1.0, tokens, pairs), _UNITS, strict=True)]
        for i in range(3):
            self._targets[i] = self._targets[i] * FORGET + row[i]
            for j in range(3):
                self._products[i][j] = self._products[i][j] * FORGET + row[i] * row[j]
        self._fitted = None

    @property
    def cost(self) -> Cost:
        """The cost that fits best; with nothing measured, in an arbitrary unit."""
        if self._fitted is None:
            self._fitted = self._fit()
        return self._fitted

    def _fit(self) -> Cost:
        if not any(self._targets):
            return Cost(FIRST_TOKENS, 1.0, 0.0)
        alone = self._targets[1] / self._products[1][1]
        assumed = (alone * FIRST_TOKENS / _UNITS[1] / 2, alone / 2, 0.0)
        kept = [0, 1, 2]
        while True:
            found = _solve(self._products, self._targets, assumed, kept)
            negative = [term for term in kept if found[term] < 0.0]
            if not negative:
                return Cost(*(value / unit for value, unit in zip(found, _UNITS, strict=True)))
            kept.remove(min(negative, key=lambda term: found[term]))


def _solve(
    products: list[list[float]], targets: list[float], assumed: tuple[float, ...], kept: list[int]
) -> list[float]:
    """The terms of the least squares, pulled a little toward what is assumed; 0 for those that are not kept."""
    size = len(kept)
    rows = []
    for i in kept:
        caution = _CAUTION * max(products[i][i], 1e-30)
        row = [products[i][j] + (caution if i == j else 0.0) for j in kept]
        rows.append([*row, targets[i] + caution * assumed[i]])
    for column in range(size):
        pivot = max(range(column, size), key=lambda line: abs(rows[line][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for line in range(size):
            if line != column and rows[column][column]:
                factor = rows[line][column] / rows[column][column]
                rows[line] = [a - factor * b for a, b in zip(rows[line], rows[column], strict=True)]
    found = [0.0, 0.0, 0.0]
    for line, term in enumerate(kept):
        found[term] = rows[line][size] / rows[line][line] if rows[line][line] else 0.0
    return found
