# SPDX-License-Identifier: Apache-2.0
"""Models that vLLM runs with transformers' code. vLLM runs all of that code on every stage."""

from __future__ import annotations

import torch
from torch import nn
from vllm.model_executor.models.utils import PPMissingLayer

TOKENS = 2


class _FirstLayerReached(Exception):
    """Ends the forward pass at the first layer."""


def changes_hidden_states(model: nn.Module) -> bool:
    """Whether a stage that is not the first would change the hidden states before its layers.

    Transformers' code may scale or normalise embeddings, and does not know of stages. It is run here up to the
    placeholder of the model's first layer. A model that needs more input than text is assumed to change nothing.

    Args:
        model: vLLM's model, loaded, of a stage that is not the first.
    """
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module))
    layers = next((module for module in lists if isinstance(module[0], PPMissingLayer)), None)
    parameter = next(model.parameters(), None)
    if layers is None or parameter is None:
        return False
    ones = torch.ones(1, TOKENS, model.text_config.hidden_size, dtype=parameter.dtype, device=parameter.device)
    probe = ones.cumsum(-1)
    arrived: list[torch.Tensor] = []

    def record(_layer: nn.Module, args: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        arrived.append(args[0] if args else named["hidden_states"])
        raise _FirstLayerReached

    hook = layers[0].register_forward_pre_hook(record, with_kwargs=True)
    try:
        with torch.inference_mode():
            positions = torch.arange(TOKENS, device=parameter.device)[None]
            model.model(input_ids=None, inputs_embeds=probe, use_cache=False, position_ids=positions, return_dict=False)
    except Exception:  # _FirstLayerReached, or any error of a model that needs more input
        return bool(arrived) and not torch.equal(arrived[0], probe)
    finally:
        hook.remove()
    return False
