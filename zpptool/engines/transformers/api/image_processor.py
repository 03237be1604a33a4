# SPDX-License-Identifier: Apache-2.0
"""The processor of a model that takes images: from a chat's text and images to token ids and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, ProcessorMixin

from zpptool.checkpoint.processor import TORCHVISION_FIX
from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.processor_files import load_processor
from zpptool.engines.transformers.media import MOST_BYTES, Media, media_bytes
from zpptool.engines.transformers.model_class import takes_images

_OF_TEXT = ("input_ids", "attention_mask")
_CONTINUED = ("token_type_ids", "mm_token_type_ids")
"""Entries for each token of the prompt that say which of them belong to an image. A token of an answer never does, and
that is what a model assumes without them."""


class ImageProcessor:
    """A model's own processor. One thread at a time uses it.

    Attributes:
        chat_template: the processor's own template; None where the tokenizer's is meant.
        image_word: what stands for an image in a text; None where the model's chat template alone can write it.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor = processor
        self.chat_template: str | None = getattr(processor, "chat_template", None)
        word = getattr(processor, "image_token", None)
        self.image_word = word if isinstance(word, str) else None

    def encode(self, text: str, images: Sequence[Image.Image], *, add_special_tokens: bool) -> tuple[list[int], Media]:
        """The token ids of a rendered chat, and the tensors of its images by parameter of the model.

        Raises:
            BadRequest: the processor refuses the text or the images, or their tensors are too large.
        """
        try:
            inputs = self._processor(
                text=[text], images=[list(images)], return_tensors="pt", add_special_tokens=add_special_tokens
            )
        except Exception as cause:  # of the processor's own code, whose errors have no common class
            raise BadRequest(f"messages: the model's processor refuses them: {cause}", "messages") from cause
        media = {name: value for name, value in inputs.items() if name not in _OF_TEXT}
        if media_bytes(media) > MOST_BYTES:
            raise BadRequest(f"messages: the images become more than {MOST_BYTES} bytes of tensors", "messages")
        token_ids: list[int] = inputs["input_ids"][0].tolist()
        for name, value in media.items():
            if _is_for_each_token(value, len(token_ids)) and name not in _CONTINUED:
                raise BadRequest(
                    f"messages: the model needs {name} for each token of an answer too, which this engine does not"
                    " compute: it takes no images",
                    "messages",
                )
        return token_ids, media


def load_image_processor(directory: Path, config: PreTrainedConfig) -> ImageProcessor | str:
    """The processor in a checkpoint or in a stage's directory; where there is none, why images are not taken."""
    if not takes_images(config):
        return "the model takes text only"
    try:
        return ImageProcessor(load_processor(directory))
    except Exception as cause:  # of the processor's own code, which may need packages, or of its files
        why = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        fix = f" {TORCHVISION_FIX}" if "orchvision" in why else ""
        return f"the model's processor cannot be loaded: {why.strip()}{fix}"


def _is_for_each_token(value: Any, num_tokens: int) -> bool:
    """Whether this is a tensor with an entry for each token of the prompt. Pixels are not, whatever their sizes."""
    return isinstance(value, Tensor) and not value.is_floating_point() and num_tokens in value.shape[1:2]
