# SPDX-License-Identifier: Apache-2.0
"""Loads the processor of a checkpoint, also where torchvision is missing that the processor needs for videos alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin

from zpptool.checkpoint.model_config import MAX_CONFIG_BYTES
from zpptool.document import read_json

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_PARTS = ("image_processor", "tokenizer", "video_processor", "feature_extractor", "audio_processor")
_NAMING_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def load_processor(directory: Path) -> ProcessorMixin:
    """The processor of a checkpoint. Image processors that need no torchvision are used where there is none.

    Raises:
        ImportError: it needs a package that is not installed.
        Exception: any error of the processor's own code, or of its files.
    """
    try:
        processor: Any = AutoProcessor.from_pretrained(directory, **_LOCAL)
    except ImportError as cause:
        if "VideoProcessor" not in str(cause):
            raise
        processor = _without_videos(directory)
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise ValueError("the checkpoint has no processor of images")
    return processor


def _without_videos(directory: Path) -> Any:
    """The processor, made of its parts, without one of videos, which would need torchvision.

    The parts are those that `AutoProcessor` would find, so their classes, which the processor checks by looking up that
    of video processors too, need no check.
    """
    original = getattr(transformers, _class_name(directory))
    unchecked = {"check_argument_for_proper_class": lambda self, _name, argument: type(argument)}
    kind = type(original.__name__, (original,), unchecked)
    tokenizer = AutoTokenizer.from_pretrained(directory, **_LOCAL)
    settings = {
        name: value
        for name, value in _fields(directory / "processor_config.json").items()
        if name not in (*_PARTS, "processor_class", "chat_template")
    }
    template = _fields(directory / "chat_template.json").get("chat_template") or tokenizer.chat_template
    return kind(
        image_processor=AutoImageProcessor.from_pretrained(directory, **_LOCAL),
        tokenizer=tokenizer,
        video_processor=SimpleNamespace(model_input_names=[]),
        chat_template=template,
        **settings,
    )


def _class_name(directory: Path) -> str:
    """The name of the processor's class, from the first file that has it."""
    names = (_fields(directory / file).get("processor_class") for file in _NAMING_FILES)
    return next((name for name in names if isinstance(name, str)), "")


def _fields(file: Path) -> dict[str, Any]:
    """The fields of a JSON file; none where there is no such file."""
    fields = read_json(file, MAX_CONFIG_BYTES, "config") if file.is_file() else {}
    return fields if isinstance(fields, dict) else {}
