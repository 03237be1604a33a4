# SPDX-License-Identifier: Apache-2.0
"""Taps in a transformers model, by torch's forward hooks alone: the same in a part of a model and in the whole.

There is no table of models. A tap within a layer has the name of the module whose output it is, and what a layer is
called with has the name of the parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import Cache, PreTrainedModel

from zpptool.engines.transformers.surgery import decoder_layers, layer_input
from zpptool.engines.witness.recorder import StepRecorder
from zpptool.partition import LayerRange
from zpptool.witness.options import Level
from zpptool.witness.taps import (
    ATTENDED,
    BEFORE_LAYERS,
    EMBEDDING,
    INPUT_IDS,
    KEY,
    LAYER_IN,
    LAYER_OUT,
    LOGITS,
    QUERY,
    STATE_AFTER,
    STATE_BEFORE,
    VALUE,
)

CALL = "call "
"""Precedes the name of a parameter of a layer's forward."""


def watch_model(model: PreTrainedModel, owned: LayerRange, recorder: StepRecorder, level: Level) -> None:
    """Install the hooks.

    Args:
        model: the whole model, or one cut to the layers `owned`.
        owned: the layers that it computes.
        recorder: takes what they see. Between its steps the hooks do nothing.
        level: above `OFF`.
    """
    layers = decoder_layers(model)[1]
    is_whole = owned == (0, len(layers))
    if owned.start == 0:
        _watch_embedding(model.get_input_embeddings(), recorder)
    for index in range(*owned):
        if level.has_layers:
            _LayerTaps(layers[index], index, recorder, level, is_first=index == owned.start, is_whole=is_whole)
    if owned.end == len(layers):
        _watch_end(model, layers, recorder, level)


def token_rows(tensor: Tensor, tokens: int) -> Tensor | None:
    """The rows of a tensor, one for each token of one sequence; None where it is not made of such rows."""
    if tensor.dim() >= 2 and tensor.shape[0] == 1 and tensor.shape[1] == tokens:
        return tensor[0]
    return tensor if tensor.dim() and tensor.shape[0] == tokens else None


def _take(recorder: StepRecorder, layer: int, name: str, value: Any) -> None:
    """Record the first tensor in what a module returned, by rows if it has one for each token."""
    tensor = value[0] if isinstance(value, tuple | list) and value else value
    if not isinstance(tensor, Tensor) or tensor.is_meta or not recorder.tokens:
        return
    rows = token_rows(tensor, recorder.tokens)
    recorder.take(layer, name, tensor if rows is None else rows, by_row=rows is not None)


def _watch_embedding(embedding: nn.Module, recorder: StepRecorder) -> None:
    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        _take(recorder, BEFORE_LAYERS, INPUT_IDS, args[0])
        _take(recorder, BEFORE_LAYERS, EMBEDDING, output)
        if recorder.capture is not None and recorder.captured_layer() == BEFORE_LAYERS:
            recorder.capture.add_module(module)

    embedding.register_forward_hook(record)


def _watch_end(model: PreTrainedModel, layers: nn.ModuleList, recorder: StepRecorder, level: Level) -> None:
    """The logits, and the modules after the layers: those that are neither in a layer nor contain the layers."""
    end = len(layers)
    inside = set(layers.modules()) | set(model.get_input_embeddings().modules())
    output = {
        name: module
        for name, module in model.named_modules()
        if name and module not in inside and layers not in module.modules() and "rotary" not in name
    }
    head = model.get_output_embeddings()
    if head is not None:
        output["lm_head"] = head

    def record(_model: nn.Module, _args: tuple[Any, ...], result: Any) -> None:
        if recorder.tokens:
            recorder.take(end, LOGITS, result.logits[0, -1][None], by_row=False)
            if recorder.capture is not None and recorder.captured_layer() == end:
                for name, module in output.items():
                    recorder.capture.weights |= {
                        f"{name}.{own}": tensor.detach().cpu().clone() for own, tensor in module.state_dict().items()
                    }

    if level is Level.OPS:
        for name, module in output.items():
            module.register_forward_hook(_output_hook(recorder, end, name, after=end - 1))
    model.register_forward_hook(record)


def _output_hook(recorder: StepRecorder, layer: int, name: str, after: int = BEFORE_LAYERS) -> Any:
    """A hook that records what a module returns, once layer `after` was recorded."""

    def record(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if recorder.last_layer >= after:
            _take(recorder, layer, name, output)

    return record


class _LayerTaps:
    """The taps of one decoder layer. In a whole model what goes into a layer is what the one before has returned, and
    is not recorded again."""

    def __init__(
        self, layer: nn.Module, index: int, recorder: StepRecorder, level: Level, *, is_first: bool, is_whole: bool
    ) -> None:
        self._index = index
        self._recorder = recorder
        self._has_call = is_first or level is Level.OPS
        self._has_input = is_first or not is_whole
        self._attention = _AttentionTap(index, recorder) if level is Level.OPS else None
        self._cache: Cache | None = None
        layer.register_forward_pre_hook(self._enter, with_kwargs=True)
        if level is Level.OPS:
            for name, module in layer.named_modules():
                if name:
                    module.register_forward_hook(_output_hook(recorder, index, name))
        # Before the hook that ends the forward pass after the stage's last layer.
        layer.register_forward_hook(self._leave, prepend=True, always_call=True)

    def _enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._recorder.tokens:
            return
        if self._has_call:
            for name, tensor in call_tensors(kwargs):
                _take(self._recorder, self._index, CALL + name, tensor)
        if self._has_input or self._recorder.captured_layer() == self._index:
            _take(self._recorder, self._index, LAYER_IN, layer_input(args, kwargs))
        if self._attention is not None:
            self._cache = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
            self._take_state(STATE_BEFORE)
            capture = self._recorder.capture
            if capture is not None and self._recorder.captured_layer() == self._index:
                capture.add_module(layer)
            self._attention.__enter__()

    def _leave(self, _layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if not self._recorder.tokens:
            return
        if self._attention is not None:
            self._attention.__exit__(None, None, None)
            self._take_state(STATE_AFTER)
        _take(self._recorder, self._index, LAYER_OUT, output)

    def _take_state(self, when: str) -> None:
        for name, tensor in state_tensors(self._cache, self._index):
            self._recorder.take(self._index, f"{when} {name}", tensor, by_row=False)


def call_tensors(kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a layer is called with beside the hidden states, by the names of its parameters."""
    for name, value in kwargs.items():
        if name == "hidden_states":
            continue
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple) and value and all(isinstance(part, Tensor) for part in value):
            yield from ((f"{name}.{place}", part) for place, part in enumerate(value))


def state_tensors(cache: Cache | None, index: int) -> Iterator[tuple[str, Tensor]]:
    """What a cache holds of one layer, by attribute: keys and values, or the states of a recurrence."""
    if cache is None or index >= len(cache.layers):
        return
    for name, value in vars(cache.layers[index]).items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, tensor in parts:
            if isinstance(tensor, Tensor) and tensor.numel():
                yield f"{name}{part}", tensor


class _AttentionTap(TorchFunctionMode):
    """Sees what attention gets, after rotation, and what it returns, where it is torch's own."""

    def __init__(self, index: int, recorder: StepRecorder) -> None:
        super().__init__()
        self._index = index
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            for name, key in ((QUERY, "query"), (KEY, "key"), (VALUE, "value")):
                self._take_heads(name, given[key])
            self._take_heads(ATTENDED, result)
        return result

    def _take_heads(self, name: str, heads: Tensor) -> None:
        """The rows of this step's tokens, of [1, heads, tokens, width]."""
        rows = heads[0].transpose(0, 1)[-self._recorder.tokens :]
        self._recorder.take(self._index, name, rows)
