# SPDX-License-Identifier: Apache-2.0
"""Classes that take images, and a run of those for which tests/vision_models.py makes a tiny model with a processor."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

TESTS = Path(__file__).resolve().parents[2] / "tests"
RUN, TEXT_ALONE, REFUSED, DIFFERENT = "images run", "text alone", "refused", "different"
KINDS = {
    "Gemma3ForConditionalGeneration": "gemma3",
    "Idefics3ForConditionalGeneration": "idefics3",
    "InternVLForConditionalGeneration": "internvl",
    "LlavaForConditionalGeneration": "llava",
    "Mistral3ForConditionalGeneration": "mistral3",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
}
"""What makes the model, by class."""
_CUTS = {"qwen3_vl": [(0, 2, 4, 6)]}
_CUT = [(0, 1, 3, 4)]


def takes_images(model_type: str) -> bool:
    """Whether transformers lists a class for images and text for this type of model."""
    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def try_images(name: str, directory: Path) -> tuple[str, str]:
    """Run a class with images, in an empty `directory`, if a tiny model with a processor can be made here.

    Returns:
        the outcome, and why it is not `RUN`.
    """
    kind = KINDS.get(name)
    if kind is None or importlib.util.find_spec("torchvision") is None:
        return TEXT_ALONE, ""
    sys.path.insert(0, str(TESTS))
    import vision_models
    import vision_parts

    getattr(vision_models, f"make_{kind}")(directory)
    try:
        vision_parts.compare(kind, directory, _CUTS.get(kind, _CUT))
    except AssertionError as difference:
        return DIFFERENT, f"with images: {difference}"
    return RUN, ""
