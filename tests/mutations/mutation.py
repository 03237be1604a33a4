# SPDX-License-Identifier: Apache-2.0
"""A fault as data: what is wrong, where it is injected, and what the witness should say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zpptool.engines.transformers.surgery import decoder_layers

CUTS = ((0, 1), (1, 3), (3, 4))
"""The layers of the stages that faults are injected into."""
LAYERS = CUTS[-1][1]
PLACES = (0, 1, 2, 3)
LONGER_PROMPT = 8
"""Where one of two requests is changed, it is that whose prompt has so many tokens, whichever came first."""
WITHIN_STEP = 2
"""The step of a request at which a fault that needs a past is injected."""


def stage_of(layer: int) -> int:
    """The stage that computes a layer."""
    return next(stage for stage, (start, end) in enumerate(CUTS) if start <= layer < end)


@dataclass
class Injection:
    """A fault that is switched on in one process.

    Attributes:
        part: the stage's model; None in the head.
        undo: puts everything back, in reverse order.
        sequence: the sequence whose step has begun last.
        steps: by sequence, the number of steps that have begun.
        kept: what a fault keeps from one step to the next.
        applied: whether it has changed anything.
    """

    part: Any = None
    sequence: Any = None
    undo: list[Callable[[], None]] = field(default_factory=list)
    steps: dict[Any, int] = field(default_factory=dict)
    kept: dict[Any, Any] = field(default_factory=dict)
    applied: bool = False

    def layer(self, index: int) -> Any:
        """A decoder layer."""
        return decoder_layers(self.part.model)[1][index]

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute until the fault is switched off."""
        had, before = name in vars(owner), vars(owner).get(name)

        def put_back() -> None:
            if had:
                setattr(owner, name, before)
            else:
                delattr(owner, name)

        self.undo.append(put_back)
        setattr(owner, name, value)
        self.applied = True

    def write(self, tensor: Any, value: Any) -> None:
        """Write a parameter or buffer until the fault is switched off."""
        import torch

        with torch.no_grad():
            before = tensor.detach().clone()
            self.undo.append(lambda: tensor.data.copy_(before))
            tensor.data.copy_(value)
        self.applied = True


@dataclass(frozen=True)
class Mutation:
    """One fault at one place.

    Attributes:
        group: one of nine.
        kind: what is wrong.
        place: says where, in the name.
        stage: the stage where it is injected; -1 for the head.
        layer: where the witness should see it first.
        taps: the taps that are right, one of which it should name; a name that ends in a star stands for its beginning.
        cause: the kind of cause that it should name.
        on_switch: changes the model when the fault is switched on.
        before_step: changes the state of a sequence before a step of it.
        on_take: changes the tensor that the stage receives.
        on_logits: changes the logits before a token is chosen.
        on_token: changes the token that was chosen.
        on_call: changes the call that the head makes.
    """

    group: str
    kind: str
    place: str
    stage: int
    layer: int
    taps: tuple[str, ...]
    cause: str
    on_switch: Callable[[Injection], None] | None = None
    before_step: Callable[[Injection, Any, int], bool] | None = None
    on_take: Callable[[Injection, Any, int], Any] | None = None
    on_logits: Callable[[Injection, Any], Any] | None = None
    on_token: Callable[[Injection, int, Any], int] | None = None
    on_call: Callable[[Injection, Any], Any] | None = None

    @property
    def name(self) -> str:
        """Unique in the catalogue."""
        return f"{self.group}: {self.kind}, {self.place}"
