# SPDX-License-Identifier: Apache-2.0
"""Runs one layer of the unsplit model again, with what the pipeline's call of it had in the place of its own.

Weights, states, positions, mask and input are transplanted one at a time, and what heals the output is the cause.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import Cache

from zpptool.engines.transformers.proof.whole_run import hidden_states_of
from zpptool.engines.transformers.surgery import layer_input
from zpptool.engines.transformers.witness.hooks import CALL
from zpptool.engines.witness.capture import Capture
from zpptool.engines.witness.change import same
from zpptool.engines.witness.recorder import StepRecorder
from zpptool.witness.taps import LAYER_IN, LAYER_OUT, STATE_BEFORE

INPUT, WEIGHTS, STATE, POSITIONS, MASK, ARGUMENTS = "input", "weights", "state", "positions", "mask", "arguments"


@dataclass(frozen=True)
class Transplant:
    """What a part of the call does to the layer's output.

    Attributes:
        part: `input`, `weights`, `state`, `positions`, `mask`, or `arguments` for what else a layer is called with.
        differs: whether the pipeline's is not the unsplit model's.
        heals: whether the output is the unsplit model's once this part is, and all others are the pipeline's.
    """

    part: str
    differs: bool
    heals: bool


class KeptCall:
    """The call of one layer of the unsplit model, kept as it was before the layer ran.

    Args:
        layer: the layer.
        index: its number.
        recorder: says which step is captured.
    """

    def __init__(self, layer: nn.Module, index: int, recorder: StepRecorder) -> None:
        self._layer = layer
        self._index = index
        self._recorder = recorder
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] | None = None
        layer.register_forward_pre_hook(self._keep, with_kwargs=True)

    def transplants(self, theirs: Capture, ours: Capture) -> list[Transplant]:
        """What each part of the call does.

        Args:
            theirs: the unsplit model's call.
            ours: the pipeline's.
        """
        parts = list(_parts(theirs, ours))
        differing = {part for part in parts if not _is_same(part, theirs, ours)}
        expected = theirs.taps.get(LAYER_OUT)
        return [
            Transplant(
                part,
                part in differing,
                bool(part in differing and expected is not None and self._gives(expected, ours, differing - {part})),
            )
            for part in parts
        ]

    def _gives(self, output: Tensor, ours: Capture, parts: Collection[str]) -> bool:
        got = self._run(ours, parts)
        return got is not None and same(got, output)

    @torch.inference_mode()
    def _run(self, ours: Capture, parts: Collection[str]) -> Tensor | None:
        """The rows that the layer returns with these parts of the pipeline's; None where it cannot be run so."""
        if self._kwargs is None:
            return None
        args, kwargs = copy.deepcopy((self._args, self._kwargs))
        if INPUT in parts:
            args, kwargs = _with_input(args, kwargs, ours.taps[LAYER_IN])
        for name in list(kwargs):
            kwargs[name] = _with_call(name, kwargs[name], ours, parts)
        if STATE in parts:
            _set_state(kwargs, self._index, ours)
        weights = ours.weights if WEIGHTS in parts else {}
        try:
            return hidden_states_of(functional_call(self._layer, weights, args, kwargs))[0]
        except (RuntimeError, ValueError, TypeError):  # the parts do not fit together
            return None

    def _keep(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recorder.captured_layer() == self._index:
            self._args, self._kwargs = copy.deepcopy((args, kwargs))


def part_of_call(name: str) -> str:
    """The part that a parameter of a layer's forward belongs to."""
    if "mask" in name:
        return MASK
    return POSITIONS if "position" in name or "rotary" in name or "alibi" in name else ARGUMENTS


def _parts(theirs: Capture, ours: Capture) -> Iterator[str]:
    """The parts that both captures hold."""
    names = theirs.taps.keys() & ours.taps.keys()
    if LAYER_IN in names:
        yield INPUT
    if theirs.weights and ours.weights:
        yield WEIGHTS
    if any(name.startswith(STATE_BEFORE) for name in names):
        yield STATE
    of_call = {part_of_call(name) for name in names if name.startswith(CALL)}
    yield from sorted(of_call)


def _is_same(part: str, theirs: Capture, ours: Capture) -> bool:
    if part == WEIGHTS:
        return all(same(tensor, ours.weights[name]) for name, tensor in theirs.weights.items() if name in ours.weights)
    return all(same(theirs.taps[name], ours.taps[name]) for name in _taps_of(part, theirs) if name in ours.taps)


def _taps_of(part: str, capture: Capture) -> list[str]:
    if part == INPUT:
        return [LAYER_IN]
    if part == STATE:
        return [name for name in capture.taps if name.startswith(STATE_BEFORE)]
    return [name for name in capture.taps if name.startswith(CALL) and part_of_call(name) == part]


def _with_input(args: tuple[Any, ...], kwargs: dict[str, Any], rows: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    states = rows.to(layer_input(args, kwargs).device)[None]
    if args:
        return (states, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": states}


def _with_call(name: str, value: Any, ours: Capture, parts: Collection[str]) -> Any:
    """An argument, from the pipeline's call if its part is among `parts`."""
    if part_of_call(name) not in parts:
        return value
    if isinstance(value, Tensor):
        return _fitted(ours.taps.get(CALL + name), value)
    if isinstance(value, tuple):
        return tuple(_fitted(ours.taps.get(f"{CALL}{name}.{place}"), part) for place, part in enumerate(value))
    return value


def _fitted(got: Tensor | None, value: Tensor) -> Tensor:
    """The captured tensor, of which a dimension of one may have been left out."""
    if got is None:
        return value
    fits = got.dim() == value.dim() or value.shape[0] != 1
    return (got if fits else got[None]).to(value.device)


def _set_state(kwargs: dict[str, Any], index: int, ours: Capture) -> None:
    cache = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
    if cache is None:
        return
    layer = cache.layers[index]
    for name, tensor in ours.taps.items():
        attribute = name.removeprefix(f"{STATE_BEFORE} ")
        if attribute != name and isinstance(vars(layer).get(attribute), Tensor):
            setattr(layer, attribute, tensor)
