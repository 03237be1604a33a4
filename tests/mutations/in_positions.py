# SPDX-License-Identifier: Apache-2.0
"""Faults of positions and of the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.mutations.mutation import CUTS, Injection, Mutation

GROUP = "position and mask"
_MASKED = ("call attention_mask", "attention k", "attention out")
"""With a mask, transformers repeats keys for each query head, so keys are the first operation that differs."""


def mutations() -> Iterator[Mutation]:
    """All of them, in each stage: a stage computes its own positions and masks."""
    for stage, (start, _end) in enumerate(CUTS):
        for kind, change in _POSITIONS:
            yield Mutation(GROUP, kind, f"stage {stage}", stage, start, ("call position*",), "positions",
                           on_switch=partial(_rotary, change))  # fmt: skip
        yield Mutation(GROUP, "rope theta", f"stage {stage}", stage, start, ("call position*",), "positions",
                       on_switch=_theta)  # fmt: skip
        yield Mutation(GROUP, "rope scaling", f"stage {stage}", stage, start, ("call position*",), "positions",
                       on_switch=_scaling)  # fmt: skip
        for kind, allowed in _MASKS:
            yield Mutation(GROUP, kind, f"stage {stage}", stage, start, _MASKED,
                           "mask", on_switch=partial(_mask, allowed))  # fmt: skip


_POSITIONS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("rope offset", lambda positions: positions + 1),
    ("positions from zero in every step", lambda positions: positions - positions[:, :1]),
    ("positions of another request", lambda positions: positions + 3 * (positions[:, :1] > 0)),
    ("positions doubled", lambda positions: positions * 2),
    ("positions reversed", lambda positions: positions.flip(1) + (positions.shape[1] == 1)),
)


def _rotary(change: Callable[[Any], Any], injection: Injection) -> None:
    module = injection.part.model.get_decoder().rotary_emb
    forward = module.forward
    injection.replace(
        module, "forward", lambda states, position_ids: forward(states, position_ids=change(position_ids))
    )


def _theta(injection: Injection) -> None:
    module = injection.part.model.get_decoder().rotary_emb
    injection.write(module.inv_freq, module.inv_freq * 0.9)


def _scaling(injection: Injection) -> None:
    injection.replace(injection.part.model.get_decoder().rotary_emb, "attention_scaling", 1.05)


_MASKS: tuple[tuple[str, Callable[[Any, Any], Any]], ...] = (
    ("mask off by one", lambda query, key: key < query.clamp(min=1)),
    ("mask lost", lambda query, key: (key <= key.max()) & (query >= 0)),
    ("window of three", lambda query, key: (key <= query) & (key > query - 3)),
)


def _mask(allowed: Callable[[Any, Any], Any], injection: Injection) -> None:
    """What the model's own code makes the mask with is replaced."""
    import sys

    import torch

    modeling = sys.modules[type(injection.part.model).__module__]

    def create(*_args: Any, inputs_embeds: Any = None, past_key_values: Any = None, **_kwargs: Any) -> Any:
        states = inputs_embeds if inputs_embeds is not None else _args[1]
        length = states.shape[1]
        past = injection.part._sequences[injection.sequence].num_tokens - length
        query = torch.arange(past, past + length)[:, None]
        key = torch.arange(past + length)[None]
        return allowed(query, key)[None, None]

    injection.replace(modeling, "create_causal_mask", create)
