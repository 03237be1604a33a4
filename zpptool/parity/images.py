# SPDX-License-Identifier: Apache-2.0
"""The images of a trial: `zpptool test-pipeline --image`."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from pathlib import Path

from zpptool.errors import usage_error
from zpptool.regular_file import read_regular

IMAGE_TRIAL_LEN = 4096
"""The most tokens of prompt and answer together where prompts have images, each of which is hundreds of tokens."""
MOST_IMAGE_BYTES = 64 << 20
_PLAIN_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""The text of a chat and nothing else; vLLM adds the tokens that stand for an image."""


def data_urls(files: Sequence[Path]) -> tuple[str, ...]:
    """The images as `data:` URLs.

    Raises:
        ZppError: (USAGE) the name of a file is not that of an image, or cannot be read.
    """
    return tuple(_data_url(file) for file in files)


def _data_url(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or ""
    if not kind.startswith("image/"):
        raise usage_error(f"the name of {file} is not that of an image", "Name a .png, .jpg or .webp file.")
    try:
        content = read_regular(file, MOST_IMAGE_BYTES, "image")
    except OSError as cause:
        raise usage_error(f"{file} cannot be read: {cause}") from cause
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def chat_template_arguments(model: Path, given: Sequence[str]) -> tuple[str, ...]:
    """The argument of vLLM that gives a model without a chat template one that adds nothing; none for other models.

    Args:
        model: the unsplit checkpoint.
        given: the user's arguments for vLLM.
    """
    chosen = any(argument.partition("=")[0] == "--chat-template" for argument in given)
    files = ("chat_template.jinja", "chat_template.json")
    if chosen or any((model / name).is_file() for name in files) or _states_template(model):
        return ()
    return ("--chat-template", _PLAIN_TEMPLATE)


def _states_template(model: Path) -> bool:
    files = (model / "tokenizer_config.json", model / "processor_config.json")
    return any(file.is_file() and '"chat_template"' in file.read_text(errors="replace") for file in files)
