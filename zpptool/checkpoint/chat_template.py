# SPDX-License-Identifier: Apache-2.0
"""Whether a model is made for conversations, by the files that transformers reads a chat template from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from zpptool.document import read_json
from zpptool.errors import ZppError

_OWN_FILES = ("chat_template.jinja", "chat_template.json")
_TOKENIZER_CONFIG = "tokenizer_config.json"
_LONGEST_CONFIG = 64 << 20


@lru_cache(maxsize=64)
def has_chat_template(model: Path) -> bool:
    """Whether a model directory has a chat template. The answer is kept, because every status asks for it.

    Args:
        model: a checkpoint, or the directory of its stage 0; one that cannot be read has none.
    """
    if any((model / name).is_file() for name in _OWN_FILES):
        return True
    if not (model / _TOKENIZER_CONFIG).is_file():
        return False
    try:
        config = read_json(model / _TOKENIZER_CONFIG, _LONGEST_CONFIG, "tokenizer config")
    except ZppError:
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))
