# SPDX-License-Identifier: Apache-2.0
"""What is asked of the process that finds the cause of a difference, and what it answers."""

from __future__ import annotations

from typing import Any

import msgspec

from zpptool.witness.compare import Difference


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question for the cause.

    Attributes:
        prompts: of the trial, and for each the number of tokens to generate.
        stages: how many stages have recorded the call, in the directory of the spec's witness.
    """

    prompts: list[tuple[list[int], int]]
    stages: int


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a pipeline first computed something else, and why.

    Attributes:
        kind: of the cause, in a word.
        cause: in a sentence.
        what: in what way the step differs.
        stage, layer, tap: where.
        request: the request's name.
        step: the step's number in the request.
        position: of the first row that differs.
        rows: how many rows of this tap differ in the step.
        tensor: the weight that is meant; empty if it is the tap.
        element: the first element of that tensor that differs, with both bit patterns; None where there is none to
            show.
        transplants: what each part of the layer's call does to its output.
    """

    kind: str
    cause: str
    what: str
    stage: int
    layer: int
    tap: str
    request: int
    step: int
    position: int
    rows: int
    tensor: str = ""
    element: dict[str, Any] | None = None
    transplants: tuple[dict[str, Any], ...] = ()


def finding_at(first: Difference, kind: str, cause: str, **more: Any) -> Finding:
    """The finding for a difference: its place is taken from there, the cause and `more` are other attributes."""
    return Finding(
        kind=kind,
        cause=cause,
        what=str(first.what),
        stage=first.stage,
        layer=first.tap.layer,
        tap=first.tap.name,
        request=first.request,
        step=first.step,
        position=first.position,
        rows=first.rows,
        **more,
    )
