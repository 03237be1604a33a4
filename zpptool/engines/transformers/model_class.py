# SPDX-License-Identifier: Apache-2.0
"""Which class of transformers runs a checkpoint: a causal language model, or one that takes images beside text."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from zpptool.errors import invalid_error


def auto_class(config: PreTrainedConfig) -> Any:
    """transformers' automatic class for a config. A class that takes images is preferred: it takes text alone too."""
    return AutoModelForImageTextToText if takes_images(config) else AutoModelForCausalLM


def takes_images(config: PreTrainedConfig) -> bool:
    """Whether the class of a config takes images beside text."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def model_class(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """The class that `auto_class` uses for `config`, and the config that it passes to that class.

    Raises:
        ZppError: (INVALID) there is none.
    """
    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            chosen: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
            if chosen.config_class is config.sub_configs.get("text_config"):
                config = config.get_text_config()
            return chosen, config
    raise invalid_error(
        f"transformers has no class for {config.model_type} that generates text from text, or from text and images"
    )


def is_composite(model: PreTrainedModel) -> bool:
    """Whether the model puts features of images, or of other things than text, before a language model."""
    return takes_images(model.config) and model.get_decoder() is not model
