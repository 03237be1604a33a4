# SPDX-License-Identifier: Apache-2.0
"""What reaches the layers of a model that vLLM runs by transformers' code: vLLM runs that whole on every stage."""

from __future__ import annotations

import torch
from torch import nn
from vllm.model_executor.models.utils import PPMissingLayer

TOKENS = 2


class _Arrived(Exception):
    """The first layer was reached."""


def changes_what_arrives(model: nn.Module) -> bool:
    """Whether a stage that is not the first would do something to the hidden states before its layers get them.

    Transformers' code may scale or normalise embeddings, and knows nothing of stages. It is run here as far as the
    place of the first layer, which such a stage lacks. Where it wants more than text has, nothing is found.

    Args:
        model: vLLM's, loaded; of a stage that is not the first.
    """
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module))
    layers = next((module for module in lists if isinstance(module[0], PPMissingLayer)), None)
    some = next(model.parameters(), None)
    if layers is None or some is None:
        return False
    probe = torch.ones(1, TOKENS, model.text_config.hidden_size, dtype=some.dtype, device=some.device).cumsum(-1)
    arrived: list[torch.Tensor] = []

    def take(_layer: nn.Module, args: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        arrived.append(args[0] if args else named["hidden_states"])
        raise _Arrived

    hook = layers[0].register_forward_pre_hook(take, with_kwargs=True)
    try:
        with torch.inference_mode():
            places = torch.arange(TOKENS, device=some.device)[None]
            model.model(input_ids=None, inputs_embeds=probe, use_cache=False, position_ids=places, return_dict=False)
    except Exception:  # _Arrived, or whatever a model says that wants more
        return bool(arrived) and not torch.equal(arrived[0], probe)
    finally:
        hook.remove()
    return False
