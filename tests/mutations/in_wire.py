# SPDX-License-Identifier: Apache-2.0
"""Faults of the tensors between two stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.mutations.mutation import CUTS, Injection, Mutation

GROUP = "wire"


def mutations() -> Iterator[Mutation]:
    """All of them, on each link between stages."""
    for stage, (start, _end) in enumerate(CUTS[1:], start=1):
        for kind, change in _CHANGES:
            yield Mutation(GROUP, kind, f"into stage {stage}", stage, start - 1, ("wire in",), "wire",
                           on_take=partial(_always, change))  # fmt: skip
        for kind, of in _OTHERS:
            yield Mutation(GROUP, kind, f"into stage {stage}", stage, start - 1, ("wire in",), "wire",
                           on_take=partial(_kept, of))  # fmt: skip


def _always(change: Callable[[Any], Any], injection: Injection, states: Any, _number: int) -> Any:
    changed = change(states.clone())
    injection.applied |= bool((changed != states).any())
    return changed


def _kept(of: Callable[[list[Any], Any], Any], injection: Injection, states: Any, _number: int) -> Any:
    """What was received before takes the place of this."""
    kept = injection.kept.setdefault("received", [])
    before = of(kept, states)
    kept.append(states.clone())
    if before is None:
        return states
    injection.applied = True
    return before.clone()


def _the_last(kept: list[Any], states: Any) -> Any:
    return next((each for each in reversed(kept) if each.shape == states.shape), None)


def _the_first(kept: list[Any], states: Any) -> Any:
    return next((each for each in kept if each.shape == states.shape), None)


def _bytes_reversed(states: Any) -> Any:
    import torch

    return states.contiguous().view(torch.uint8).view(-1, 4).flip(1).contiguous().view(torch.float32).view(states.shape)


def _last_quarter_lost(states: Any) -> Any:
    states[..., 24:] = 0
    return states


def _one_bit(states: Any) -> Any:
    import torch

    states.view(torch.int32)[0, -1, 7] ^= 1 << 3
    return states


def _sign(states: Any) -> Any:
    states[0, -1, 3] *= -1
    return states


def _two_rows(states: Any) -> Any:
    order = [1, 0, *range(2, states.shape[1])] if states.shape[1] > 1 else [0]
    return states[:, order]


_CHANGES: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("rows reversed", lambda states: states.flip(1)),
    ("two rows exchanged", _two_rows),
    ("last quarter of each row lost", _last_quarter_lost),
    ("bytes reversed", _bytes_reversed),
    ("one low bit flipped", _one_bit),
    ("one sign flipped", _sign),
    ("rounded by a codec", lambda states: states.bfloat16().float()),
    ("halves exchanged", lambda states: states.roll(16, -1)),
    ("scaled by a codec", lambda states: states * 1.0000002),
    ("shifted by one element", lambda states: states.roll(1, -1)),
)
_OTHERS: tuple[tuple[str, Callable[[list[Any], Any], Any]], ...] = (
    ("the message before, once more", _the_last),
    ("a message of long before", _the_first),
)
