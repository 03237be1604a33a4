# SPDX-License-Identifier: Apache-2.0
"""Where the user places tensors whose place cannot be inferred, or was inferred wrongly: `--place PATTERN=WHERE`.

A pattern is a tensor name in which `*` and `?` stand for any characters. It overrides every rule, except that a tensor
inside a decoder layer stays in the stage of its layer as well. The last pattern that matches a name counts. Placements
are recorded in the manifests, and validate and join apply them in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate
from typing import NamedTuple

from zpptool.errors import invalid_error, usage_error

_WHERE = re.compile(r"first|last|all|[0-9]{1,9}")


class Placement(NamedTuple):
    """One placement.

    Attributes:
        pattern: the pattern of tensor names.
        where: `first`, `last`, `all`, or the number of a stage, from 0.
    """

    pattern: str
    where: str

    def stages(self, num_stages: int) -> tuple[int, ...]:
        """Return the stages that it names.

        Raises:
            ZppError: (USAGE) it names a stage that does not exist.
        """
        if self.where == "all":
            return tuple(range(num_stages))
        number = {"first": 0, "last": num_stages - 1}.get(self.where)
        number = int(self.where) if number is None else number
        if number >= num_stages:
            raise usage_error(
                f"--place {self} names stage {number}, and the stages are 0 to {num_stages - 1}",
                "Name a stage that exists, or first, last or all.",
            )
        return (number,)

    def __str__(self) -> str:
        """The placement as it is written on the command line."""
        return f"{self.pattern}={self.where}"


def parse_placements(texts: Iterable[str]) -> tuple[Placement, ...]:
    """Parse `PATTERN=WHERE` texts.

    Raises:
        ZppError: (USAGE) a text is not of this form.
    """
    placements = []
    for text in texts:
        pattern, _, where = text.rpartition("=")
        if not pattern or not _WHERE.fullmatch(where):
            raise usage_error(
                f"--place {text} is not PATTERN=WHERE",
                "WHERE is first, last, all or a stage's number: --place 'projector.*=last'",
            )
        placements.append(Placement(pattern, where if not where.isdigit() else str(int(where))))
    return tuple(placements)


def placed_tensors(placements: Sequence[Placement], names: Iterable[str]) -> dict[str, Placement]:
    """Return the placement of each tensor that a pattern matches.

    Raises:
        ZppError: (INVALID) a pattern matches no tensor.
    """
    names = list(names)
    placed: dict[str, Placement] = {}
    for placement in placements:
        matches = re.compile(translate(placement.pattern)).fullmatch
        found = [name for name in names if matches(name)]
        if not found:
            raise invalid_error(
                f"--place {placement} matches no tensor of the checkpoint", "`zpptool split --explain` lists the names."
            )
        placed |= dict.fromkeys(found, placement)
    return placed
