# SPDX-License-Identifier: Apache-2.0
"""Checks, when part of a model is loaded, that the model can be run in parts. It is refused here rather than wrong
later.

Two things are found out by running the model, because no table of models could list them: in what form a decoder layer
returns its hidden states, and whether the stage's layers need anything but these from the stages before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from zpptool.engines.transformers.cache import check_filled
from zpptool.engines.transformers.cut import CutModel
from zpptool.engines.transformers.surgery import Passage, decoder_layers, layer_input
from zpptool.errors import invalid_error

_FORMS: tuple[tuple[Any, ...] | None, ...] = (None, (), (None,), (None, None))
"""What a layer may return after the hidden states, in the order in which it is tried."""
UNCUT_HINT = "Only a model whose layers need no more than the hidden states of the layer before can be run in parts."
_LENGTHS = (2, 1)
"""The steps of the trial sequence: a prompt of two tokens, then one more token."""


def probe(cut: CutModel) -> None:
    """Find out in what form the model's layers return hidden states, and check that the part has all that it needs.

    Raises:
        ZppError: (INVALID) something is missing, or the model cannot be run in parts.
        Exception: any error of the model's own code, which lacks something.
    """
    with torch.inference_mode():
        received = torch.empty(0) if cut.is_first else observe_layer_output(cut)
        received = torch.linspace(-1, 1, received.numel()).to(received).view(received.shape)
        sequence = cut.new_sequence()
        for num_tokens in _LENGTHS:
            if cut.is_first:
                output = cut.run_tokens(sequence, torch.zeros(num_tokens, dtype=torch.long))
            else:
                output = cut.run_hidden_states(sequence, received[:, :num_tokens])
            if output.isnan().any():
                used = ", ".join(dict.fromkeys(cut.passage.stand_ins_used))
                needed = f"{used}, of which their stage holds no tensor" if used else "more than the hidden states"
                raise invalid_error(f"layers {cut.layers} need {needed}", UNCUT_HINT)
    check_filled(sequence.cache, cut.layers, sequence.num_tokens)


def observe_layer_output(cut: CutModel) -> Tensor:
    """Set `passage.extras` to what a decoder layer returns after the hidden states.

    A form is right if what the replaced layers return is what reaches the stage's first layer. That layer is then
    called with the arguments that the model passes to it, and what it returns is this model's form.

    Returns:
        hidden states, of the shape and dtype that they have between layers.

    Raises:
        ZppError: (INVALID) a layer returns something that a stage cannot pass on to the next.
        Exception: the model's last error, where it accepts none of the forms.
    """
    first = decoder_layers(cut.model)[1][cut.layers.start]
    failure: Exception | None = None
    for form in _FORMS:
        cut.passage.extras = form
        try:
            call = _catch_call(cut)
        except Exception as cause:  # of the model's own code, which does not expect this form
            failure = cause
            continue
        if call.is_sound:
            return _record_form(first.forward(*call.args_, **call.kwargs), cut.passage)  # without the layer's hooks
    raise failure or invalid_error("the model's forward does not hand hidden states from layer to layer")


class _LayerCall(Exception):
    """The model's call of the stage's first layer. It is sound if its input is that of the model's first layer."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], embeddings: Any) -> None:
        super().__init__()
        self.args_, self.kwargs = args, kwargs
        self.is_sound = layer_input(args, kwargs) is embeddings


def _catch_call(cut: CutModel) -> _LayerCall:
    """The call that the model makes to the stage's first layer; the call itself is not executed."""
    embeddings: list[Any] = []

    def record(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeddings.append(layer_input(args, kwargs))

    def catch(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _LayerCall(args, kwargs, embeddings[0])

    layers = decoder_layers(cut.model)[1]
    hooks = [
        layers[index].register_forward_pre_hook(hook, with_kwargs=True)
        for index, hook in ((0, record), (cut.layers.start, catch))
    ]
    try:
        cut.run_without_input(cut.new_sequence(), _LENGTHS[0])
    except _LayerCall as call:
        return call
    finally:
        for hook in hooks:
            hook.remove()
    raise invalid_error(f"the model's forward does not call its decoder layer {cut.layers.start}")


def _record_form(output: Any, passage: Passage) -> Tensor:
    """Set `passage.extras` to the form of `output`, and return the hidden states in it."""
    if isinstance(output, Tensor):
        passage.extras = None
        return output
    if not (isinstance(output, tuple | list) and output and isinstance(output[0], Tensor)):
        raise invalid_error(f"a decoder layer returns {type(output).__name__}, not hidden states")
    passage.extras = tuple(_template(extra) for extra in output[1:])
    return output[0]


def _template(extra: Any) -> Any:
    """What a replaced layer returns in the place of `extra`: None, the cache, or NaN."""
    if extra is None:
        return None
    if isinstance(extra, Cache):
        return Cache
    if isinstance(extra, Tensor) and extra.is_floating_point():
        return extra.new_tensor(torch.nan)
    raise invalid_error(f"a decoder layer hands {type(extra).__name__} on to the next beside the hidden states")
