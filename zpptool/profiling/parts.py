# SPDX-License-Identifier: Apache-2.0
"""Which parts of a model are measured, and how the times of its layers follow from those of the parts (pure).

A part is a stage: consecutive layers, with the embedding on the first and the head on the last. The time of a layer is
the difference of two parts that differ in such layers only, so everything else that a stage does cancels out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from zpptool.errors import invalid_error
from zpptool.partition import LayerRange, Partition

MOST_LAYERS = 4
"""By how many layers two parts differ at most. More make the difference more exact, and the parts larger."""


@dataclass(frozen=True)
class Difference:
    """Two parts whose times differ by those of some layers.

    Attributes:
        more, less: the numbers of the parts.
        layers: the layers that only `more` has.
    """

    more: int
    less: int
    layers: LayerRange


@dataclass(frozen=True)
class PartsPlan:
    """What is measured.

    Attributes:
        types: the type of each layer.
        parts: the layers of each part.
        differences: in the order in which they are evaluated.
        base: the part whose remainder is what a stage does besides its layers.
        first, last: the part with the embedding, and the one with the head.
    """

    types: tuple[str, ...]
    parts: tuple[LayerRange, ...]
    differences: tuple[Difference, ...]
    base: int
    first: int
    last: int

    def partition(self, part: int) -> tuple[Partition, int]:
        """The partition that has this part as a stage, and the number of that stage."""
        own, total = self.parts[part], len(self.types)
        ranges = [LayerRange(0, own.start), own, LayerRange(own.end, total)]
        kept = tuple(one for one in ranges if one.count)
        return kept, kept.index(own)


@dataclass(frozen=True)
class PartTimes:
    """Seconds, by what takes them.

    Attributes:
        layers: of one layer of each type.
        step: of what a stage does besides its layers.
        embedding, lm_head: of what the first and the last stage do besides that.
    """

    layers: Mapping[str, float]
    step: float
    embedding: float
    lm_head: float


def plan_parts(types: Sequence[str], joined: Collection[int] = ()) -> PartsPlan:
    """Choose the parts.

    Args:
        types: the type of each layer.
        joined: the layers that have to be in the stage of the layer before.

    Raises:
        ZppError: (INVALID) the model cannot be cut into enough parts.
    """
    total = len(types)
    cuts = [layer for layer in range(1, total) if layer not in joined]
    if len(cuts) < 2:
        raise invalid_error(
            f"a model of {total} layers that can be cut in {len(cuts)} places cannot be measured layer by layer",
            "Three stages are needed; give the planner no profile, and it plans from bytes.",
        )
    made = _Parts(types, cuts)
    first, last = made.number(LayerRange(0, cuts[0])), made.number(LayerRange(cuts[-1], total))
    pending = [kind for kind in dict.fromkeys(types) if kind not in _only_at_the_ends(types, cuts)]
    for kind in sorted(pending, key=lambda kind: -types.count(kind)):
        if kind not in made.known:
            made.measure(kind)
    base = made.differences[0].less
    return PartsPlan(tuple(types), tuple(made.parts), tuple(made.differences), base, first, last)


def solve(plan: PartsPlan, seconds: Sequence[float]) -> PartTimes:
    """The times of layers, from those of the parts.

    A type that occurs beside the embedding or the head only is not distinguished from it, nor does it have to be: they
    are always in the same stage. Its layers then have the time of both.

    Args:
        plan: the parts.
        seconds: of a step of each part.
    """
    layers: dict[str, float] = {}
    for difference in plan.differences:
        count = Counter(plan.types[difference.layers.start : difference.layers.end])
        rest = seconds[difference.more] - seconds[difference.less]
        rest -= sum(layers[kind] * times for kind, times in count.items() if kind in layers)
        unknown = [kind for kind in count if kind not in layers]
        for kind in unknown:
            layers[kind] = max(rest, 0.0) / sum(count[other] for other in unknown)
    step = max(_rest(plan, plan.base, seconds, layers), 0.0)
    ends = []
    for part in (plan.first, plan.last):
        rest = max(_rest(plan, part, seconds, layers) - step, 0.0)
        unknown = [kind for kind in plan.types[plan.parts[part].start : plan.parts[part].end] if kind not in layers]
        for kind in unknown:
            layers[kind] = rest / len(unknown)
        ends.append(0.0 if unknown else rest)
    return PartTimes(layers, step, *ends)


def _rest(plan: PartsPlan, part: int, seconds: Sequence[float], layers: Mapping[str, float]) -> float:
    """What a part takes besides those of its layers whose time is known."""
    own = plan.parts[part]
    return seconds[part] - sum(layers.get(kind, 0.0) for kind in plan.types[own.start : own.end])


def _only_at_the_ends(types: Sequence[str], cuts: Sequence[int]) -> set[str]:
    """The types of which no layer is between the first cut and the last."""
    return set(types) - set(types[cuts[0] : cuts[-1]])


class _Parts:
    """The parts that were chosen so far."""

    def __init__(self, types: Sequence[str], cuts: Sequence[int]) -> None:
        self._types, self._cuts = types, list(cuts)
        self.parts: list[LayerRange] = []
        self.differences: list[Difference] = []
        self.known: set[str] = set()

    def number(self, own: LayerRange) -> int:
        """The number of a part, which is added if it is new."""
        if own not in self.parts:
            self.parts.append(own)
        return self.parts.index(own)

    def measure(self, kind: str) -> None:
        """Add the parts that tell the time of a layer of this type."""
        start, between, end = min(self._candidates(kind), key=self._badness)
        more, less = self.number(LayerRange(start, end)), self.number(LayerRange(start, between))
        self.differences.append(Difference(more, less, LayerRange(between, end)))
        self.known.update(self._types[between:end])

    def _candidates(self, kind: str) -> list[tuple[int, int, int]]:
        """Where the shared layers of two parts begin, where they end, and where the longer part ends."""
        places = [0, *self._cuts]
        found = []
        for number, between in enumerate(places[1:], start=1):
            for end in places[number + 1 :]:
                if kind in self._types[between:end]:
                    found.append((places[number - 1], between, end))
                    if number > 1:
                        found.append((0, between, end))
                if end - between >= MOST_LAYERS:
                    break
        return found

    def _badness(self, candidate: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """The best pair of parts differs in unknown layers of one type only, does not have the embedding, and differs
        in as many layers as possible."""
        start, between, end = candidate
        others = len({*self._types[between:end]} - self.known) - 1
        return others, len({*self._types[between:end]}), int(start == 0), between - start - (end - between)
