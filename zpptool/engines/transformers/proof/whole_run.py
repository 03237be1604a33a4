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

from zpptool.engines.transformers.surgery import decoder_layers

STEPS: tuple[tuple[int, ...], ...] = ((7, 201, 33, 158, 90, 5, 244, 71, 33, 112), (19,), (230,), (47,), (164,))
"""The tokens of the trial sequence, by step: a prompt that is longer than the windows of a small model, then one token
in each step."""


@dataclass
class WholeRun:
    """One sequence of a whole model.

    Attributes:
        layer_outputs: by step and by layer, the hidden states [1, tokens, ...].
        logits: by step, those after the last token, [vocabulary].
    """

    layer_outputs: list[list[Tensor]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    @property
    def num_layers(self) -> int:
        """The number of decoder layers."""
        return len(self.layer_outputs[0])


def run_whole(model: PreTrainedModel) -> WholeRun:
    """Run the trial sequence.

    Raises:
        ZppError: (INVALID) the model does not keep its decoder layers in one list.
        Exception: any error of the model's own code.
    """
    run = WholeRun()
    layers = decoder_layers(model)[1]

    def record(layer: nn.Module, _args: Any, output: Any) -> None:
        if layer is layers[0]:
            run.layer_outputs.append([])
        run.layer_outputs[-1].append(hidden_states_of(output).clone())

    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        run.logits = [logits[0] for logits in generate_given(model, STEPS, 1)]
    finally:
        for hook in hooks:
            hook.remove()
    return run


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
