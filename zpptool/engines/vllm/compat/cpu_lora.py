# SPDX-License-Identifier: Apache-2.0
"""Corrects two faults of vLLM 0.32's LoRA adapters on a CPU: one changes answers, the other ends the stage.

vLLM's GPU kernels look up the adapter of each row themselves. The torch functions that a CPU takes in their place index
with a list of adapters, one for each row.
"""

from __future__ import annotations

import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

from zpptool.errors import ZppError

_STOCK_SHRINK, _STOCK_EXPAND = lora_ops.bgmv_shrink, lora_ops.bgmv_expand


def fix_adapter_products() -> None:
    """Have rows without an adapter computed without one, and the logprobs of prompts computed without an error.

    vLLM marks rows without an adapter with -1, and torch takes that for the last adapter (vLLM's pull request 48421).
    For the logprobs of a prompt vLLM computes the logits of all its tokens, but lists the adapters of the rows that are
    sampled: the numbers of rows differ, and torch raises an error.
    """
    for module in (lora_ops, punica_cpu):
        module.bgmv_shrink, module.bgmv_expand = _shrink, _expand


def _shrink(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, indices: torch.Tensor, scaling: float = 1.0
) -> None:
    """The first of the two products of an adapter. Where it is zero the second adds nothing.

    Raises:
        ZppError: the logprobs of a prompt are wanted while an adapter of the LM head is loaded; its rows are not known.
    """
    if _is_of_other_rows(inputs, indices):
        if weights.any():
            raise ZppError(
                "on a CPU the logprobs of a prompt cannot be computed while an adapter of the LM head is loaded",
                "Ask without prompt_logprobs and echo, or load adapters that leave the LM head alone.",
            )
        output.zero_()
        return
    _STOCK_SHRINK(inputs, weights, output, indices, scaling)
    output.masked_fill_((indices == -1).unsqueeze(-1), 0)  # one index may stand for all rows: those of a prompt


def _expand(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, indices: torch.Tensor, add_inputs: bool = True
) -> None:
    """The second product, added to the output; of rows whose adapters are not listed the first one is zero."""
    if not _is_of_other_rows(inputs, indices):
        _STOCK_EXPAND(inputs, weights, output, indices, add_inputs)


def _is_of_other_rows(inputs: torch.Tensor, indices: torch.Tensor) -> bool:
    return len(indices) not in (1, len(inputs))
