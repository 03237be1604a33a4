# SPDX-License-Identifier: Apache-2.0
"""What a whole model computes for one sequence, recorded layer by layer while transformers' own `generate` runs it.

Nothing of what cuts models is used here, so a fault in it cannot appear on both sides of a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from zpptool.engines.transformers.decoder_call import DECODER_CALL, DecoderCall
from zpptool.engines.transformers.model_class import is_composite
from zpptool.engines.transformers.surgery import decoder_layers
from zpptool.engines.transformers.tensor_tree import to_entries

STEPS: tuple[tuple[int, ...], ...] = ((7, 201, 33, 158, 90, 5, 244, 71, 33, 112), (19,), (230,), (47,), (164,))
"""The tokens of the trial sequence, by step: a prompt that is longer than the windows of a small model, then one token
in each step."""


@dataclass
class WholeRun:
    """One sequence of a whole model.

    Attributes:
        layer_outputs: by step and by layer, the hidden states [1, tokens, ...].
        logits: by step, those after the last token, [vocabulary].
        passed: by step, the entries of a message with what a composite model passes to its language model.
    """

    layer_outputs: list[list[Tensor]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    passed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_layers(self) -> int:
        """The number of decoder layers."""
        return len(self.layer_outputs[0])


def run_whole(model: PreTrainedModel, *, displaced: bool = False) -> WholeRun:
    """Run the trial sequence.

    Args:
        model: the whole model.
        displaced: whether the language model of a composite model gets other positions than those of text, as images
            before it would cause. A part that does not take over the positions that it is given then differs.

    Raises:
        ZppError: (INVALID) the model does not keep its decoder layers in one list.
        Exception: any error of the model's own code.
    """
    run = WholeRun()
    layers = decoder_layers(model)[1]
    hooks = [model.get_decoder().register_forward_pre_hook(_displace, with_kwargs=True)] if displaced else []
    call = DecoderCall(model) if is_composite(model) else None

    def record(layer: nn.Module, _args: Any, output: Any) -> None:
        if layer is layers[0]:
            run.layer_outputs.append([])
            run.passed.append(to_entries(DECODER_CALL, call.recorded) if call is not None else {})
        run.layer_outputs[-1].append(hidden_states_of(output).clone())

    hooks += [layer.register_forward_hook(record) for layer in layers]
    try:
        run.logits = [logits[0] for logits in generate_given(model, STEPS, 1)]
    finally:
        for hook in [*hooks, *([call] if call is not None else [])]:
            hook.remove()
    return run


def _displace(_decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """A hook of a language model that moves its positions: those of each dimension by another distance."""
    positions = kwargs.get("position_ids")
    if not isinstance(positions, Tensor):
        return None
    distances = torch.arange(3, 3 + 5 * len(positions), 5, device=positions.device)
    return args, {**kwargs, "position_ids": positions + distances.view(-1, *[1] * (positions.dim() - 1))}


def generate_given(model: PreTrainedModel, steps: Sequence[Sequence[int]], num_rows: int) -> list[Tensor]:
    """Have `generate` compute a batch of equal sequences whose tokens are given.

    Args:
        steps: the tokens by step; one in each but the first.
        num_rows: the number of equal sequences.

    Returns:
        by step, the logits after the last token, [rows, vocabulary].
    """
    prompt, *rest = steps
    token_ids = torch.tensor([list(prompt)] * num_rows)
    given = _Given([token for (token,) in rest])
    model.generation_config = GenerationConfig()
    config = GenerationConfig(
        do_sample=False, max_new_tokens=len(steps), pad_token_id=0, return_dict_in_generate=True, output_logits=True
    )
    output = model.generate(
        token_ids,
        attention_mask=torch.ones_like(token_ids),
        generation_config=config,
        logits_processor=LogitsProcessorList([given]),
    )
    return list(output.logits)


def hidden_states_of(output: Any) -> Tensor:
    """The hidden states in what a decoder layer returns."""
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


class _Given(LogitsProcessor):
    """Has greedy search choose the given tokens, and then any."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._next: Callable[[], int] = iter([*tokens, 0]).__next__

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, self._next()] = 0
        return chosen
