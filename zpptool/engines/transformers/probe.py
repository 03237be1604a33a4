# SPDX-License-Identifier: Apache-2.0
"""Prove, when part of a model is loaded, that it can be run in part at all: refused here, never wrong later.

Two questions are put to the model itself, because no table of models could answer them: in what form does a decoder
layer return its hidden states, and does anything but these reach the stage's layers from the stages before?
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
"""What may come after the hidden states in what a layer returns, in the order in which it is tried."""
UNCUT_HINT = "Only a model whose layers need no more than the hidden states of the layer before can be run in parts."
_LENGTHS = (2, 1)
"""The steps of the sequence that is tried: a prompt of two tokens, then one more token."""


def probe(cut: CutModel) -> None:
    """Learn in what form the model's layers return hidden states, and prove that the part has all that it needs.

    Raises:
        ZppError: (INVALID) it has not, or the model cannot be run in part.
        Exception: whatever the model's own code raises for want of something.
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
    """Note in `passage.extras` what a decoder layer returns after the hidden states.

    A form is right if what the passed layers hand on is what arrives at the stage's first layer; the call that this
    layer gets is then made, and what it returns is the form of this model for certain.

    Returns:
        hidden states, of the shape and dtype that they have between layers.

    Raises:
        ZppError: (INVALID) a layer returns something that a stage could not give to the next in its place.
        Exception: the last that the model raised, where it knows no form that was tried.
    """
    first = decoder_layers(cut.model)[1][cut.layers.start]
    failure: Exception | None = None
    for form in _FORMS:
        cut.passage.extras = form
        try:
            call = _catch_call(cut)
        except Exception as cause:  # the model's own code, given a form that it does not expect
            failure = cause
            continue
        if call.is_sound:
            return _learn(first.forward(*call.args_, **call.kwargs), cut.passage)  # past the hook that leaves the stage
    raise failure or invalid_error("the model's forward does not hand hidden states from layer to layer")


class _LayerCall(Exception):
    """The model's call of the stage's first layer; sound if it brings what the model's first layer was given."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], embeddings: Any) -> None:
        super().__init__()
        self.args_, self.kwargs = args, kwargs
        self.is_sound = layer_input(args, kwargs) is embeddings


def _catch_call(cut: CutModel) -> _LayerCall:
    """The call that the model makes to the stage's first layer, which is not carried out."""
    embeddings: list[Any] = []

    def note(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeddings.append(layer_input(args, kwargs))

    def catch(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _LayerCall(args, kwargs, embeddings[0])

    layers = decoder_layers(cut.model)[1]
    hooks = [
        layers[index].register_forward_pre_hook(hook, with_kwargs=True)
        for index, hook in ((0, note), (cut.layers.start, catch))
    ]
    try:
        cut.run_without_input(cut.new_sequence(), _LENGTHS[0])
    except _LayerCall as call:
        return call
    finally:
        for hook in hooks:
            hook.remove()
    raise invalid_error(f"the model's forward does not call its decoder layer {cut.layers.start}")


def _learn(output: Any, passage: Passage) -> Tensor:
    """Note the form of `output`, and return the hidden states in it."""
    if isinstance(output, Tensor):
        passage.extras = None
        return output
    if not (isinstance(output, tuple | list) and output and isinstance(output[0], Tensor)):
        raise invalid_error(f"a decoder layer returns {type(output).__name__}, not hidden states")
    passage.extras = tuple(_template(extra) for extra in output[1:])
    return output[0]


def _template(extra: Any) -> Any:
    """What to put in the place of `extra` after a layer that was passed: nothing, the cache, or poison."""
    if extra is None:
        return None
    if isinstance(extra, Cache):
        return Cache
    if isinstance(extra, Tensor) and extra.is_floating_point():
        return extra.new_tensor(torch.nan)
    raise invalid_error(f"a decoder layer hands {type(extra).__name__} on to the next beside the hidden states")
