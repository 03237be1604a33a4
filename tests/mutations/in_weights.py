# SPDX-License-Identifier: Apache-2.0
"""Faults of weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.mutations.mutation import CUTS, LAYERS, PLACES, Injection, Mutation, stage_of

GROUP, CAUSE = "weights", "weights"
Change = Callable[[Any], Any]


def mutations() -> Iterator[Mutation]:
    """All of them."""
    for kind, module, change in _CHANGES:
        for layer in PLACES[::-1][:3]:
            yield _of_layer(kind, layer, module, change)
    for pair in (("mlp.gate_proj", "mlp.up_proj"), ("self_attn.k_proj", "self_attn.v_proj")):
        for layer in PLACES[1:]:
            tap = (pair[0], "self_attn.k_proj")
            yield Mutation(GROUP, f"{pair[0]} and {pair[1]} exchanged", f"layer {layer}", stage_of(layer), layer, tap,
                           CAUSE, on_switch=partial(_exchange, layer, pair))  # fmt: skip
    for module in ("mlp.down_proj", "self_attn.q_proj", "input_layernorm"):
        yield Mutation(GROUP, "two layers' tensors exchanged", module, 1, 1, (module,), CAUSE,
                       on_switch=partial(_exchange_layers, module))  # fmt: skip
    for row in (2, 60, 100):
        last = len(CUTS) - 1
        yield Mutation(GROUP, "wrong tied copy", f"row {row} of the head", last, LAYERS, ("lm_head",), CAUSE,
                       on_switch=partial(_head_row, row))  # fmt: skip
    for place, factor in enumerate((1.5, -1.0, 1.0001)):
        yield Mutation(GROUP, "final norm scaled", f"by {factor}", 2, LAYERS, ("model.norm",), CAUSE,
                       on_switch=partial(_final_norm, factor, place))  # fmt: skip
    for factor in (2.0, -1.0, 1.001):
        yield Mutation(GROUP, "embedding scaled in memory", f"by {factor}", 0, -1, ("embedding",), CAUSE,
                       on_switch=partial(_embedding, factor))  # fmt: skip


def _of_layer(kind: str, layer: int, module: str, change: Change) -> Mutation:
    def inject(injection: Injection) -> None:
        weight = injection.layer(layer).get_submodule(module).weight
        injection.write(weight, change(weight.detach().clone()))

    return Mutation(GROUP, kind, f"layer {layer}", stage_of(layer), layer, (module,), CAUSE, on_switch=inject)


def _exchange(layer: int, pair: tuple[str, str], injection: Injection) -> None:
    first, second = (injection.layer(layer).get_submodule(name).weight for name in pair)
    values = first.detach().clone(), second.detach().clone()
    injection.write(first, values[1])
    injection.write(second, values[0])


def _exchange_layers(module: str, injection: Injection) -> None:
    first, second = (injection.layer(layer).get_submodule(module).weight for layer in (1, 2))
    values = first.detach().clone(), second.detach().clone()
    if module == "input_layernorm":  # all ones in a model that was never trained
        values = values[0] * 1.25, values[1] * 0.75
    injection.write(first, values[1])
    injection.write(second, values[0])


def _head_row(row: int, injection: Injection) -> None:
    weight = injection.part.model.get_output_embeddings().weight
    value = weight.detach().clone()
    value[row] *= 1.01
    injection.write(weight, value)


def _final_norm(factor: float, _place: int, injection: Injection) -> None:
    weight = injection.part.model.get_decoder().norm.weight
    injection.write(weight, weight.detach() * factor)


def _embedding(factor: float, injection: Injection) -> None:
    weight = injection.part.model.get_input_embeddings().weight
    injection.write(weight, weight.detach() * factor)


def _flip(bit: int, value: Any) -> Any:
    import torch

    value.view(torch.int32)[3, 5] ^= torch.tensor(-(1 << 31) if bit == 31 else 1 << bit, dtype=torch.int32)
    return value


def _swap_rows(value: Any) -> Any:
    return value[[1, 0, *range(2, len(value))]]


def _zero_rows(value: Any) -> Any:
    value[4:8] = 0
    return value


def _round(value: Any) -> Any:
    return value.bfloat16().float()


_CHANGES: tuple[tuple[str, str, Change], ...] = (
    ("sign bit flipped", "self_attn.q_proj", partial(_flip, 31)),
    ("exponent bit flipped", "mlp.down_proj", partial(_flip, 25)),
    ("high mantissa bit flipped", "self_attn.v_proj", partial(_flip, 20)),
    ("low mantissa bit flipped", "mlp.up_proj", partial(_flip, 6)),
    ("transposed", "self_attn.o_proj", lambda value: value.t()),
    ("two rows exchanged", "mlp.gate_proj", _swap_rows),
    ("rows of a hole", "self_attn.k_proj", _zero_rows),
    ("wrong quantisation scale", "mlp.down_proj", lambda value: value * 1.0078125),
    ("rounded", "self_attn.q_proj", _round),
    ("halves exchanged by a wrong shard order", "mlp.up_proj", lambda value: value.roll(32, 0)),
    ("norm weight of a stale shard", "post_attention_layernorm", lambda value: value * 0.9),
)
