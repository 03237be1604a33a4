# SPDX-License-Identifier: Apache-2.0
"""Whether the answers of a whole model depend on each of its layers, and on what each keeps for the next token.

A comparison proves nothing about a layer that could be left out without a difference. So one batch of equal sequences
is run in which each sequence lacks one thing: the computation of one layer, or the state of one layer after the prompt.
Its logits have to differ from those of the untouched sequence by more than two untouched ones differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from zpptool.engines.transformers.proof.whole_run import generate_given, hidden_states_of
from zpptool.engines.transformers.surgery import decoder_layers, layer_input
from zpptool.errors import invalid_error

_STEPS = ((7, 201, 33, 158), (19,))
_MARGIN, _LEAST = 8.0, 1e-6
"""A difference counts if it is this many times that of untouched sequences, and this share of the largest logit."""


def check_sensitivity(model: PreTrainedModel) -> None:
    """Check that the logits of the whole model depend on every layer and on every layer's state.

    Raises:
        ZppError: (INVALID) they do not depend on one of them.
        Exception: any error of the model's own code.
    """
    layers = decoder_layers(model)[1]
    num_layers = len(layers)
    num_rows = 2 * num_layers + 2
    states = _StateEraser(first_row=num_layers + 1, num_rows=num_rows)
    hooks = [model.register_forward_pre_hook(states, with_kwargs=True)]
    hooks += [
        layer.register_forward_hook(_leave_out(row), with_kwargs=True) for row, layer in enumerate(layers, start=1)
    ]
    try:
        logits = generate_given(model, _STEPS, num_rows)[-1]
    finally:
        for hook in hooks:
            hook.remove()
    untouched = logits[0]
    noise = float((logits[-1] - untouched).abs().max())
    least = max(_MARGIN * noise, _LEAST * float(untouched.abs().max()))
    differences = (logits - untouched).abs().amax(dim=-1)
    if not differences.isfinite().all():
        raise invalid_error("its logits are not finite")
    for index in range(num_layers):
        if differences[1 + index] <= least:
            raise invalid_error(f"its answers do not depend on layer {index}")
        if index in states.erased and differences[1 + num_layers + index] <= least:
            raise invalid_error(f"its answers do not depend on the state of layer {index}")


def _leave_out(row: int) -> Any:
    """A hook of a decoder layer that has it return its input in one row."""

    def hook(_layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        states = hidden_states_of(output).clone()
        states[row] = layer_input(args, kwargs)[row]
        return states if isinstance(output, Tensor) else (states, *output[1:])

    return hook


class _StateEraser:
    """A hook of a model that, before its second step, sets the state of layer i in row `first_row + i` to zero.

    Attributes:
        erased: the layers that had state.
    """

    def __init__(self, first_row: int, num_rows: int) -> None:
        self._first_row = first_row
        self._num_rows = num_rows
        self._step = 0
        self.erased: set[int] = set()

    def __call__(self, _model: nn.Module, args: Any, kwargs: Any) -> None:
        self._step += 1
        if self._step < len(_STEPS):
            return
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is None:
            raise invalid_error("it keeps no state from one token to the next in a cache of transformers")
        for index, layer in enumerate(cache.layers):
            for state in _state_of(layer):
                if state.dim() and state.shape[0] == self._num_rows:
                    state[self._first_row + index] = 0
                    self.erased.add(index)


def _state_of(layer: Any) -> Iterator[Tensor]:
    """Every tensor in the cache of one layer."""
    for value in vars(layer).values():
        yield from (held for held in (value.values() if isinstance(value, dict) else (value,)) if torch.is_tensor(held))
