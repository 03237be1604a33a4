# SPDX-License-Identifier: Apache-2.0
"""Faults of the embedded engine, made by replacing text in the source of one of its functions."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest

ENGINE = "zpptool.engines.transformers"


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: what is wrong.
        where: module and function or method, below the engine's package.
        old: text in the function's source.
        new: what replaces it.
        model: the kind of model that shows it.
        layers: the stage's layers that show it.
    """

    name: str
    where: str
    old: str
    new: str
    model: str = "llama"
    layers: tuple[int, int] = (1, 3)


RUN, COUNT, STEP = "cut.CutModel._run", "cut.CutModel._step", "model.PartialModel.step"
FIRST, LAST = (0, 2), (2, 4)
MUTANTS = [
    Mutant(
        "positions off by one from the second step on",
        RUN,
        "torch.arange(start, end",
        "torch.arange(start and start - 1, start and end - 1 or end",
    ),
    Mutant(
        "absolute positions off by one",
        RUN,
        "torch.arange(start, end",
        "torch.arange(start + 1, end + 1",
        "gpt2",
        FIRST,
    ),
    Mutant("positions reversed", RUN, "device=self.model.device)[None]", "device=self.model.device).flip(0)[None]"),
    Mutant("the sequence's length is not kept", COUNT, "sequence.num_tokens += num_tokens", "pass"),
    Mutant("the cache goes to no parameter of the model", RUN, "self._cache_name:", "'forgotten':"),
    Mutant("the cache of Mamba goes to another parameter", RUN, "self._cache_name:", "'past_keys':", "mamba"),
    Mutant(
        "later layers are not counted", COUNT, "range(self.layers.end, self.num_layers)", "range(0)", "hybrid", (0, 1)
    ),
    Mutant("the logits of another token", RUN, "output.logits[0, -1]", "output.logits[0, -2]", layers=LAST),
    Mutant(
        "received states are rounded",
        "cut.CutModel.run_hidden_states",
        "hidden_states.to(",
        "hidden_states.half().float().to(",
    ),
    Mutant(
        "received states are scaled",
        "cut.CutModel.run_hidden_states",
        "copy=True)",
        "copy=True).mul_(1.0001)",
        layers=LAST,
    ),
    Mutant(
        "only the last token is received",
        "cut.CutModel.run_hidden_states",
        "hidden_states.to(",
        "hidden_states[:, -1:].to(",
    ),
    Mutant(
        "tokens in reverse order", "cut.CutModel.run_tokens", "token_ids.to(", "token_ids.flip(0).to(", layers=FIRST
    ),
    Mutant(
        "the first token is lost",
        "cut.CutModel.run_tokens",
        "token_ids.to(",
        "token_ids[token_ids[0] == 7:].to(",
        layers=FIRST,
    ),
    Mutant(
        "the residual is dropped at the cut",
        "surgery._leave",
        "output if isinstance(output, Tensor) else output[0]",
        "(output if isinstance(output, Tensor) else output[0]) - _args[0]",
    ),
    Mutant(
        "the stage ends a layer early",
        "surgery.cut_layers",
        "layers[owned.end - 1].register",
        "layers[owned.end - 2].register",
    ),
    Mutant(
        "a layer is left out",
        "surgery.cut_layers",
        "if owned.end < len(layers):",
        "layers[owned.start].register_forward_hook(lambda _layer, args, output: args[0])\n"
        "    if owned.end < len(layers):",
    ),
    Mutant(
        "a layer counts for the one after it",
        "cache.pass_layer",
        "cache.update(placeholder, placeholder, index)",
        "cache.update(placeholder, placeholder, min(index + 1, len(cache.layers) - 1))",
    ),
    Mutant(
        "a cache without the layers' kinds",
        "cache.new_cache",
        "config=config.get_text_config(decoder=True)",
        "",
        "hybrid",
    ),
    Mutant("the state is not kept", STEP, "self._sequences.get(sequence_id)", "None", "mamba"),
    Mutant("the keys are not kept", STEP, "self._sequences.get(sequence_id)", "None", layers=FIRST),
    Mutant(
        "one sequence ends another",
        "model.PartialModel.free",
        "self._sequences.pop(sequence_id, None)",
        "self._sequences.clear()",
    ),
    Mutant(
        "one sequence ends another's state",
        "model.PartialModel.free",
        "self._sequences.pop(sequence_id, None)",
        "self._sequences.clear()",
        "mamba",
    ),
    Mutant(
        "two sequences share their state",
        STEP,
        "self._sequences.get(sequence_id)",
        "self._sequences.get(sequence_id, next(iter(self._sequences.values()), None))",
    ),
    Mutant(
        "two layers are exchanged",
        "cut.CutModel.__init__",
        "self.layers = layers",
        "self.layers = layers; own = decoder_layers(model)[1]; own[1], own[2] = own[2], own[1]",
    ),
    Mutant(
        "the number of tokens is taken for one", COUNT, "sequence.cache, num_tokens)", "sequence.cache, 1)", "alibi"
    ),
    Mutant("earlier layers do not count", "surgery.PassedLayer.forward", "pass_layer(", "(lambda *_: None)(", "alibi"),
    Mutant(
        "earlier layers count one token too few",
        "cache.pass_layer",
        "(1, 1, num_tokens, 1)",
        "(1, 1, max(num_tokens - 1, 1), 1)",
        "alibi",
    ),
    Mutant(
        "weights are rounded", "loading.StoredTensor.__getitem__", "return tensor", "return tensor.bfloat16().float()"
    ),
    Mutant(
        "rows of weights are exchanged", "loading.StoredTensor.__getitem__", "return tensor", "return tensor.flip(0)"
    ),
    Mutant("dropout is on", "loading.load_cut_model", "return model", "return model.train()", "gpt2"),
    Mutant("another dtype", "loading.load_cut_model", "dtype=dtype", "dtype=torch.bfloat16"),
    Mutant(
        "the arguments of the language model are not sent",
        "cut.CutModel.message",
        "**to_entries(DECODER_CALL, self._decoder_call.recorded)",
        "",
        "vision",
        FIRST,
    ),
    Mutant("positions do not continue", RUN, "known + 1", "known", "vision", FIRST),
    Mutant(
        "the arguments of the language model are not taken",
        "decoder_call.DecoderCall._before_call",
        "**self.given}",
        "}",
        "vision",
    ),
    Mutant("a tied head is lost", "loading._replace_missing", "not present.isdisjoint(pair)", "False", layers=LAST),
]


def apply(mutant: Mutant, patch: pytest.MonkeyPatch) -> None:
    """Replace the function wherever the engine uses it, until the patch is undone."""
    module_name, *path = mutant.where.split(".")
    module = import_module(f"{ENGINE}.{module_name}")
    holder: Any = module
    for name in path[:-1]:
        holder = getattr(holder, name)
    original = getattr(holder, path[-1])
    changed = _compiled(original, mutant, vars(module))
    patch.setattr(holder, path[-1], changed)
    for name, other in list(sys.modules.items()):
        if name.startswith(ENGINE) and getattr(other, path[-1], None) is original:
            patch.setattr(other, path[-1], changed)


def _compiled(original: Callable[..., Any], mutant: Mutant, names: dict[str, Any]) -> Callable[..., Any]:
    source = textwrap.dedent(inspect.getsource(original))
    assert mutant.old in source, f"{mutant.where} no longer contains {mutant.old!r}"
    defined: dict[str, Any] = {}
    exec(compile(source.replace(mutant.old, mutant.new), mutant.where, "exec"), names, defined)
    function: Callable[..., Any] = defined[original.__name__]
    return function
