# SPDX-License-Identifier: Apache-2.0
"""Faults of keys and values between two steps of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.mutations.mutation import LONGER_PROMPT, PLACES, WITHIN_STEP, Injection, Mutation, stage_of

GROUP = "keys and values"
Change = Callable[[Any], None]
"""Changes what the cache holds of one layer."""


def mutations() -> Iterator[Mutation]:
    """All of them."""
    for layer in PLACES[:3]:
        for kind, taps, change in _CHANGES:
            yield _state(kind, f"layer {layer}", layer, taps, partial(_changed, layer, change))
        yield _state("blocks of another request", f"layer {layer}", layer, _KEYS, partial(_of_another, layer))
    for first, second in ((1, 2), (2, 1)):
        yield _state("blocks of another layer", f"layer {first}", first, _KEYS, partial(_of_layer, first, second))


def _state(
    kind: str, place: str, layer: int, taps: tuple[str, ...], change: Callable[[Injection, Any], bool]
) -> Mutation:
    def before_step(injection: Injection, sequence: Any, number: int) -> bool:
        return number == WITHIN_STEP and change(injection, sequence)

    return Mutation(GROUP, kind, place, stage_of(layer), layer, taps, "state", before_step=before_step)


def _cached(injection: Injection, sequence: Any, layer: int) -> Any:
    return injection.part._sequences[sequence].cache.layers[layer]


def _changed(layer: int, change: Change, injection: Injection, sequence: Any) -> bool:
    change(_cached(injection, sequence, layer))
    return True


def _of_another(layer: int, injection: Injection, sequence: Any) -> bool:
    """The first rows are those of another request; without another request in flight nothing is changed."""
    sequences = injection.part._sequences
    others = [other for other, each in sequences.items() if other != sequence and each.num_tokens]
    if not others or sequences[sequence].num_tokens <= LONGER_PROMPT:
        return False
    own, other = _cached(injection, sequence, layer), _cached(injection, others[0], layer)
    count = min(own.keys.shape[2], other.keys.shape[2], 3)
    for name in ("keys", "values"):
        mixed = getattr(own, name).clone()
        mixed[:, :, :count] = getattr(other, name)[:, :, :count]
        setattr(own, name, mixed)
    return True


def _of_layer(layer: int, other: int, injection: Injection, sequence: Any) -> bool:
    own, theirs = _cached(injection, sequence, layer), _cached(injection, sequence, other)
    own.keys, own.values = theirs.keys.clone(), theirs.values.clone()
    return True


def _exchange(cached: Any) -> None:
    cached.keys, cached.values = cached.values, cached.keys


def _slot_plus_one(cached: Any) -> None:
    cached.keys, cached.values = cached.keys.roll(1, 2), cached.values.roll(1, 2)


def _swap_rows(cached: Any) -> None:
    order = [1, 0, *range(2, cached.keys.shape[2])]
    cached.keys, cached.values = cached.keys[:, :, order], cached.values[:, :, order]


def _stale(cached: Any) -> None:
    cached.keys, cached.values = cached.keys.clone(), cached.values.clone()
    cached.keys[:, :, 1:3] = 0
    cached.values[:, :, 1:3] = 0


def _values_only(cached: Any) -> None:
    cached.values = cached.values.clone()
    cached.values[:, 0, -1] *= -1


def _heads_exchanged(cached: Any) -> None:
    cached.keys, cached.values = cached.keys.flip(1), cached.values.flip(1)


def _round(cached: Any) -> None:
    cached.keys, cached.values = cached.keys.half().float(), cached.values.half().float()


def _one_bit(cached: Any) -> None:
    import torch

    cached.keys = cached.keys.clone()
    cached.keys.view(torch.int32)[0, 0, 1, 3] ^= 1 << 22


_KEYS, _VALUES = ("state before keys",), ("state before values",)
_CHANGES: tuple[tuple[str, tuple[str, ...], Change], ...] = (
    ("keys and values exchanged", _KEYS, _exchange),
    ("slot plus one", _KEYS, _slot_plus_one),
    ("two rows exchanged", _KEYS, _swap_rows),
    ("stale block", _KEYS, _stale),
    ("values negated", _VALUES, _values_only),
    ("heads exchanged", _KEYS, _heads_exchanged),
    ("rounded by a narrow cache", _KEYS, _round),
    ("one bit flipped", _KEYS, _one_bit),
)
