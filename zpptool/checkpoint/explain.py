# SPDX-License-Identifier: Apache-2.0
"""Explain which stages hold each tensor and why, for groups of tensors with the same placement and reason.

A group is one tensor name with its numbers replaced by `*`. Every tensor of the checkpoint is in exactly one group, so
the counts and bytes of all groups add up to the checkpoint's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.roles import Side
from zpptool.checkpoint.splitplan import SplitPlan

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class TensorGroup:
    """Tensors whose names differ only in their numbers.

    Attributes:
        pattern: the common name, with `*` for each number.
        count: number of tensors.
        nbytes: total size in bytes, each tensor counted once.
        stages: the stages that hold any of them; empty if they are dropped.
        side: where the tensors are needed.
        reason: why they are needed there, or why they are dropped.
    """

    pattern: str
    count: int
    nbytes: int
    stages: tuple[int, ...]
    side: Side
    reason: str


def explain(plan: SplitPlan) -> tuple[TensorGroup, ...]:
    """Return the tensor groups of a plan, in model order: before the layers, in the layers, after the layers."""
    holders: dict[str, list[int]] = {}
    for stage, names in enumerate(plan.assignment.stages):
        for name in names:
            holders.setdefault(name, []).append(stage)
    groups: dict[tuple[str, Side, str], list[TensorInfo]] = {}
    for name, role in plan.structure.roles.items():
        reason = role.reason if name in holders else plan.assignment.dropped[name]
        groups.setdefault((_NUMBER.sub("*", name), role.side, reason), []).append(plan.index.tensors[name])
    order = list(Side)
    return tuple(
        TensorGroup(
            pattern,
            len(tensors),
            sum(tensor.nbytes for tensor in tensors),
            tuple(sorted({stage for tensor in tensors for stage in holders.get(tensor.name, ())})),
            side,
            reason,
        )
        for (pattern, side, reason), tensors in sorted(groups.items(), key=lambda item: order.index(item[0][1]))
    )


def stage_words(stages: tuple[int, ...]) -> str:
    """Format stage numbers: `0-2, 5` for stages 0, 1, 2 and 5; `none` for an empty tuple."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in _runs(stages)) or "none"


def _runs(numbers: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    first = last = None
    for number in numbers:
        if first is None or last is None or number != last + 1:
            if first is not None and last is not None:
                yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last
