# SPDX-License-Identifier: Apache-2.0
"""Cuts a transformers model down to one stage, so that the model's own forward pass still runs and is correct.

The list of decoder layers keeps its full length and every layer its absolute index, so positions, masks, rotary tables
and per-layer rules are computed by the model's own code. Only what the stage does not own is replaced, by modules that
hold no weights:

* a decoder layer before the stage's first becomes a `PassedLayer`; the one just before it returns the received hidden
  states, in the form that the model expects from a layer;
* any other module whose weights are not in the stage becomes a `StandIn`;
* the forward pass ends at the output of the stage's last layer, unless that is the model's last.

A replaced module returns NaN. So a value that the stage needs but does not have makes its output NaN, which
`zpptool.engines.transformers.probe` detects, instead of silently wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import Cache, PreTrainedModel

from zpptool.engines.transformers.cache import pass_layer
from zpptool.errors import invalid_error
from zpptool.partition import LayerRange


@dataclass
class Passage:
    """The data of one step for the modules that replace those of other stages.

    Attributes:
        hidden_states: the output of the layer before the stage's first, [1, tokens, ...]; None while the model is
            probed: replaced layers then return their input.
        cache: the sequence's cache; a replaced layer still counts its tokens there.
        num_tokens: the number of tokens of this step.
        extras: what a decoder layer of this model returns after the hidden states, with the class `Cache` in the place
            of the cache; None where it returns the hidden states alone.
        stand_ins_used: the names of the stand-ins that were called in this step.
    """

    hidden_states: Tensor | None = None
    cache: Cache | None = None
    num_tokens: int = 0
    extras: tuple[Any, ...] | None = None
    stand_ins_used: list[str] = field(default_factory=list)

    def begin_step(self, cache: Cache, num_tokens: int) -> None:
        """Set the sequence's cache and the number of tokens of the next step."""
        self.cache, self.num_tokens = cache, num_tokens
        self.stand_ins_used.clear()

    def layer_output(self, hidden_states: Tensor) -> Any:
        """What a decoder layer of this model returns for `hidden_states`."""
        if self.extras is None:
            return hidden_states
        return (hidden_states, *(self.cache if extra is Cache else extra for extra in self.extras))


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The hidden states in a call of a decoder layer."""
    return args[0] if args else kwargs["hidden_states"]


class _Replaced(nn.Module):
    """Replaces a module, which stays on the meta device; attributes are looked up there."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["original"] = original  # not registered as a child, so that no weights are loaded into it

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)


class PassedLayer(_Replaced):
    """A decoder layer of an earlier stage."""

    def __init__(self, original: nn.Module, index: int, passage: Passage, *, is_last_passed: bool) -> None:
        super().__init__(original)
        self.__dict__.update(index=index, passage=passage, is_last_passed=is_last_passed)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's input, which is NaN; the received hidden states if it is the last layer before the stage's
        first."""
        pass_layer(self.passage.cache, self.index, self.passage.num_tokens)
        received = self.passage.hidden_states if self.is_last_passed else None
        return self.passage.layer_output(layer_input(args, kwargs) if received is None else received)


class StandIn(_Replaced):
    """Replaces a module of another stage outside the decoder layers; returns NaN in the right shape."""

    def __init__(self, original: nn.Module, name: str, passage: Passage) -> None:
        super().__init__(original)
        self.__dict__.update(name=name, passage=passage)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """NaN in the shape and dtype of the original's output, which is run on the meta device to find them."""
        devices: list[torch.device] = []

        def to_meta(value: Any) -> Any:
            if isinstance(value, Tensor):
                devices.append(value.device)
                return value.to("meta")
            return value

        def to_nan(value: Any) -> Any:
            return torch.full_like(value, torch.nan, device=devices[0]) if isinstance(value, Tensor) else value

        self.passage.stand_ins_used.append(self.name)
        args, kwargs = tree_map(to_meta, (args, kwargs))
        return tree_map(to_nan, self.original(*args, **kwargs))


class LeftStage(Exception):
    """Ends the forward pass after the stage's last layer; `hidden_states` go to the next stage."""

    def __init__(self, hidden_states: Tensor) -> None:
        super().__init__()
        self.hidden_states = hidden_states


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the list of the model's decoder layers: the outermost list with as many modules as there are layers.

    Raises:
        ZppError: (INVALID) the model has no such list.
    """
    total = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    for root, root_name in ((decoder, prefix), (model, "")):
        for name, module in root.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == total:
                return ".".join(part for part in (root_name, name) if part), module
    raise invalid_error(f"{type(model).__name__} does not keep its {total} decoder layers in one list")


def cut_layers(model: PreTrainedModel, owned: LayerRange, passage: Passage) -> None:
    """Replace the decoder layers outside `owned`, and end the forward pass after its last layer.

    Raises:
        ZppError: (INVALID) the model has no list of decoder layers, or `owned` is not within it.
    """
    name, layers = decoder_layers(model)
    if not 0 <= owned.start < owned.end <= len(layers):
        raise invalid_error(f"layers {owned} are not within the model's 0-{len(layers)} ({name})")
    for index, layer in enumerate(layers):
        if index not in range(*owned):
            layers[index] = PassedLayer(layer, index, passage, is_last_passed=index == owned.start - 1)
    if owned.end < len(layers):
        layers[owned.end - 1].register_forward_hook(_leave)


def _leave(_layer: nn.Module, _args: Any, output: Any) -> None:
    raise LeftStage(output if isinstance(output, Tensor) else output[0])


def stand_in_for(model: PreTrainedModel, missing: Iterable[str], passage: Passage) -> None:
    """Replace every module that one of the `missing` parameters directly belongs to. A parameter of a module that
    contains the decoder layers is itself replaced by NaN.

    Raises:
        ZppError: (INVALID) a missing parameter belongs to a decoder layer of the stage, or to the module with the list
            of the decoder layers.
    """
    layers_name, layers = decoder_layers(model)
    for parameter in sorted(missing):
        name, _, own_name = parameter.rpartition(".")
        module = model.get_submodule(name)
        if isinstance(module, StandIn):
            continue
        if parameter.startswith(f"{layers_name}.") or any(child is layers for child in module.children()):
            raise invalid_error(
                f"the checkpoint holds no tensor for {parameter}, which this stage needs",
                "Check the checkpoint with `zpptool validate`.",
            )
        if any(child is layers for child in module.modules()):
            _lose_parameter(model, module, own_name)
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, StandIn(module, name, passage))


def _lose_parameter(model: PreTrainedModel, module: nn.Module, name: str) -> None:
    """Replace a parameter by NaN in the place of an attribute, which no weights are loaded into."""
    lost = getattr(module, name)
    device = next(tensor.device for tensor in model.parameters() if not tensor.is_meta)
    delattr(module, name)
    setattr(module, name, torch.full(lost.shape, torch.nan, dtype=lost.dtype, device=device))
