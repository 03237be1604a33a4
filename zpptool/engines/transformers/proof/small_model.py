# SPDX-License-Identifier: Apache-2.0
"""A small model with random weights, of the same class and with the same layers as a large one."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from zpptool.engines.transformers.proof.sizes import small_values
from zpptool.errors import invalid_error

MOST_PARAMETERS = 40_000_000
"""A model with more is not small: its proof would take longer than a few seconds."""
_NOT_OF_THE_MODEL = (
    "transformers_version", "_attn_implementation", "architectures", "id2label", "label2id", "_name_or_path",
    "quantization_config", "auto_map", "dtype", "torch_dtype",
)  # fmt: skip
_SEED = 20
_NOISE = 0.1


def own_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config that say what the model computes."""
    return {
        key: own_values(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in _NOT_OF_THE_MODEL
    }


def small_config(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedConfig:
    """A config with the same layers as `config` and small sizes.

    Raises:
        ZppError: (INVALID) the sizes in it cannot be made small enough.
        Exception: any error of the class, for sizes that do not fit together.
    """
    return _checked(model_class, type(config)(**small_values(own_values(config.to_dict()))))


def edited_config(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedConfig:
    """As `small_config`, made by changing the values of a copy: for a class that does not take its own values back.

    Raises:
        ZppError: (INVALID) the sizes in it cannot be made small enough.
    """
    copied = copy.deepcopy(config)
    _assign(copied, small_values(own_values(config.to_dict())))
    return _checked(model_class, copied)


def _assign(config: PreTrainedConfig, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        part = getattr(config, key, None)
        if isinstance(part, PreTrainedConfig):
            _assign(part, value)
        elif part is not None and part != value:
            setattr(config, key, value)


def same_config(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedConfig:
    """The config as it is, for a model that is small.

    Raises:
        ZppError: (INVALID) it is not.
    """
    return _checked(model_class, type(config)(**own_values(config.to_dict())))


def _checked(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedConfig:
    num_parameters = _num_parameters(model_class, config)
    if num_parameters > MOST_PARAMETERS:
        raise invalid_error(f"the smallest model of this config that could be made has {num_parameters:,} parameters")
    return config


def _num_parameters(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(config).parameters())


def random_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model in float32 with weights so large that everything which it computes shows in its output: a matrix keeps
    the size of what it multiplies, and everything else differs from what it is initialised to."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(_SEED)
        model = model_class(config).float().eval()
        for parameter in model.parameters():
            _randomise(parameter)
    return model


def _randomise(parameter: nn.Parameter) -> None:
    if not parameter.is_floating_point():
        return
    if parameter.dim() > 1:
        parameter.normal_(std=1 / math.sqrt(parameter.shape[-1]))
    else:
        parameter.add_(torch.randn_like(parameter), alpha=_NOISE)
