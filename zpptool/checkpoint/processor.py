# SPDX-License-Identifier: Apache-2.0
"""What a model that takes images, video or sound needs beside its weights: a processor's files, and packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zpptool.checkpoint.model_config import takes_more_than_text

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "tekken.json")
"""One of them describes the processor. The last one is Mistral's own."""
PACKAGES = ("torchvision", "PIL")
"""What processors of images import; vLLM needs both for most models."""
TORCHVISION_FIX = (
    "Install the torchvision that was built for the installed torch: pytorch.org/get-started has the command."
)


def missing_processor(directory: Path, config: dict[str, Any]) -> str | None:
    """Return what a checkpoint lacks to take more than text, in one line; None if nothing, or if it is a text model.

    Args:
        directory: of the checkpoint, or of a stage of it.
        config: its config.json.
    """
    if not takes_more_than_text(config) or any((directory / name).is_file() for name in PROCESSOR_FILES):
        return None
    return (
        f"the model takes more than text, and {directory} has no {' or '.join(PROCESSOR_FILES[:2])}: requests with"
        " images cannot be served"
    )
