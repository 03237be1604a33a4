# SPDX-License-Identifier: Apache-2.0
"""Finds out where each saved tensor is needed, by running the model instead of interpreting names.

This is done in two steps. While the model runs, every operation is intercepted: a parameter that is read before the
first decoder layer is needed there, and so on; what is inside a layer's module belongs to that layer. Then every
parameter is filled with a number of its own and the model is saved: however transformers renames, splits or stacks
tensors when it saves, the numbers in a saved tensor show which parameters it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zpptool.partition import Partition

BEFORE, AFTER = "before", "after"
Place = int | str
"""A decoder layer's index, or before the first layer, or after the last."""
_PROMPT_TOKENS = 8


@dataclass(frozen=True)
class Truth:
    """What was observed of the model.

    Attributes:
        num_layers: the number of decoder layers; 0 where transformers does not keep them in one list.
        watched: whether a forward pass was observed from the first layer to the last; otherwise only the parameters in
            layers are known.
        loops: whether a layer is run twice, or after a later one.
        places: by parameter number, where it is needed; empty where it was never read.
        numbers: the number of each parameter, by its name in the model.
    """

    num_layers: int
    watched: bool
    loops: bool
    places: Mapping[int, frozenset[Place]]
    numbers: Mapping[str, int]


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The outermost list of as many modules as the text config has layers, within `get_decoder()` if there is one."""
    config = model.config.get_text_config(decoder=True)
    total = getattr(config, "num_hidden_layers", None) or getattr(config, "num_layers", None)
    decoder = model.get_decoder()
    names = {module: name for name, module in model.named_modules()}
    for root in (decoder, model):
        for name, module in root.named_modules() if root is not None else ():
            tower = {"vision", "visual", "image", "audio", "protein"} & set(name.replace(".", "_").split("_"))
            if isinstance(module, nn.ModuleList) and len(module) == total and not tower:
                return names[module], module
    return None


class _Watch(TorchDispatchMode):
    """Records the place at which each storage is read."""

    def __init__(self, numbers: Mapping[int, int]) -> None:
        super().__init__()
        self.place: Place = BEFORE
        self.read: dict[int, set[Place]] = {}
        self._numbers = numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                number = self._numbers.get(leaf.untyped_storage().data_ptr())
                if number is not None:
                    self.read.setdefault(number, set()).add(self.place)
        return func(*args, **(kwargs or {}))


def observe(model: nn.Module) -> Truth:
    """Run the model once over random tokens, and record where it reads each parameter and saved buffer."""
    saved = model.state_dict(keep_vars=True)
    numbers: dict[str, int] = {}
    by_storage: dict[int, int] = {}
    for name, tensor in saved.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage:
            numbers[name] = by_storage.setdefault(storage, len(by_storage) + 1)
    places: dict[int, set[Place]] = {number: set() for number in numbers.values()}
    found = decoder_layers(model)
    if found is None:
        return Truth(0, False, False, {number: frozenset(own) for number, own in places.items()}, numbers)
    prefix, layers = found
    for name, number in numbers.items():
        if name.startswith(f"{prefix}."):
            places[number].add(int(name[len(prefix) + 1 :].partition(".")[0]))
    watch = _Watch(by_storage)
    calls = _record_calls(layers, watch)
    watched = any(_run(module, watch, calls) and watch.place == AFTER for module in _from_outside(model, prefix))
    for number, own in watch.read.items():
        places[number] |= {place for place in own if isinstance(place, int)} if places[number] else own
    loops = watched and any(later <= earlier for earlier, later in pairwise(calls))
    return Truth(len(layers), watched, loops, {number: frozenset(own) for number, own in places.items()}, numbers)


def stamp(model: nn.Module, truth: Truth) -> None:
    """Fill every parameter with its number."""
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.dtype != torch.bool and name in truth.numbers:
                tensor.fill_(truth.numbers[name])


def needed_at(directory: Path, truth: Truth) -> dict[str, frozenset[Place] | None]:
    """For each tensor of a stamped checkpoint, where it is needed; None where its numbers do not show it."""
    needed: dict[str, frozenset[Place] | None] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a mapping)
                values = [abs(value) for value in stored.get_tensor(name).double().unique().tolist()]
                if all(value in truth.places for value in values):
                    needed[name] = frozenset().union(*(truth.places[int(value)] for value in values))
                else:
                    number = truth.numbers.get(name)
                    needed[name] = None if number is None else truth.places[number]
    return needed


def stages_in_need(places: frozenset[Place], partition: Partition) -> set[int]:
    """The stages that read a tensor which is needed at these places."""
    last = len(partition) - 1
    at = {BEFORE: 0, AFTER: last}
    return {
        at[place] if isinstance(place, str) else next(stage for stage, own in enumerate(partition) if place < own.end)
        for place in places
    }


def _record_calls(layers: nn.ModuleList, watch: _Watch) -> list[int]:
    """Update the watch's place at each layer. What is read between two layers counts as the later one's."""
    calls: list[int] = []

    def enter(layer: int) -> Any:
        def hook(*_args: Any) -> None:
            calls.append(layer)
            watch.place = layer

        return hook

    def leave(layer: int) -> Any:
        def hook(*_args: Any) -> None:
            watch.place = AFTER if layer + 1 == len(layers) else layer + 1

        return hook

    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(enter(number))
        layer.register_forward_hook(leave(number))
    return calls


def _from_outside(model: nn.Module, prefix: str) -> Iterator[nn.Module]:
    """The model, then the modules around the layers from the outside in: some models run on text only in part."""
    yield model
    parts = prefix.split(".")
    for depth in range(1, len(parts)):
        yield model.get_submodule(".".join(parts[:depth]))


def _run(module: nn.Module, watch: _Watch, calls: list[int]) -> bool:
    """Run one module over random tokens. An audio model takes a row for each of its codebooks. Returns whether it
    ran."""
    watch.place = BEFORE
    calls.clear()
    rows = getattr(getattr(module, "config", None), "num_codebooks", None) or 1
    tokens = torch.randint(2, 200, (rows, _PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))
    try:
        with torch.no_grad(), watch:
            module(input_ids=tokens)
    except Exception:  # of the model's own code, which needs more input: the next inner module is tried
        return False
    return True
