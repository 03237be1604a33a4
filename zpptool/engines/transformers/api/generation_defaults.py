# SPDX-License-Identifier: Apache-2.0
"""The defaults that a checkpoint's generation_config.json sets for requests. The fields are those that vLLM honours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zpptool.checkpoint.model_config import MAX_CONFIG_BYTES
from zpptool.document import read_json
from zpptool.engines.transformers.sampling import SamplingParams
from zpptool.errors import ZppError, invalid_error

_SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class GenerationDefaults:
    """Applies to what a request does not set itself.

    Attributes:
        sampling: how tokens are chosen; at temperature 1 where the file has no temperature.
        max_new_tokens: the greatest number of tokens of an answer to a chat; None for no limit of its own.
        eos_token_ids: the tokens that end an answer; None where the file has none.
    """

    sampling: SamplingParams
    max_new_tokens: int | None = None
    eos_token_ids: frozenset[int] | None = None


def load_generation_defaults(directory: Path) -> GenerationDefaults:
    """The defaults of a checkpoint; of one without the file, OpenAI's.

    Raises:
        ZppError: (INVALID) a value cannot be used.
    """
    path = directory / "generation_config.json"
    fields: Any = read_json(path, MAX_CONFIG_BYTES, "config") if path.exists() else {}
    if not isinstance(fields, dict):
        raise invalid_error(f"{path} is not a JSON object")
    given = {name: fields[name] for name in _SAMPLING_FIELDS if fields.get(name) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else int | float):
            raise invalid_error(f"{path}: {name} is {value!r}, which is not a number of its kind")
    given["top_k"] = max(given.get("top_k", 0), 0)
    try:
        sampling = SamplingParams(**{"temperature": 1.0, **given})
    except ZppError as cause:
        raise invalid_error(f"{path}: {cause.message}", cause.hint) from cause
    max_new_tokens = fields.get("max_new_tokens")
    if max_new_tokens is not None and (type(max_new_tokens) is not int or max_new_tokens < 1):
        raise invalid_error(f"{path}: max_new_tokens is {max_new_tokens!r}, which is not a number of tokens")
    return GenerationDefaults(sampling, max_new_tokens, _token_ids(path, fields.get("eos_token_id")))


def _token_ids(path: Path, value: Any) -> frozenset[int] | None:
    if value is None:
        return None
    token_ids = value if isinstance(value, list) else [value]
    if not all(type(token) is int for token in token_ids):
        raise invalid_error(f"{path}: eos_token_id is {value!r}, which is neither a token id nor a list of them")
    return frozenset(token_ids)
