# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's config.json says, read without torch or transformers and never changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zpptool.checkpoint.roles import SPEAKER_WORDS, TOWER_WORDS, words_of
from zpptool.document import read_json
from zpptool.errors import ZppError, invalid_error

MAX_CONFIG_BYTES = 64 * 1024 * 1024
MAX_LAYERS = 1_000_000
"""A larger number in a config is no number of layers."""
LAYER_COUNT_KEYS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers", "decoder_layers",
    "num_decoder_layers", "layers"
)  # fmt: skip
"""The names that configs give the number of decoder layers, the usual one first."""
LAYER_LIST_KEYS = ("layers_block_type", "layer_types")
"""The names of lists with one entry a layer, which stand in for the number where a config keeps it to itself."""

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""The names that they give the number of tokens that a sequence may have."""


def read_config(directory: Path) -> dict[str, Any]:
    """The checkpoint's config.json as an object.

    Raises:
        ZppError: (INVALID) `directory` is no directory, or holds no config.json that is a JSON object.
    """
    if not directory.is_dir():
        raise invalid_error(f"{directory} is not a directory", "Name a directory that holds a checkpoint.")
    path = directory / "config.json"
    if not path.exists():
        raise _without_config(directory)
    config = read_json(path, MAX_CONFIG_BYTES, "config")
    if not isinstance(config, dict):
        raise invalid_error(f"{path} is not a JSON object")
    return config


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of `config` that describes the decoder: itself, or the nested text config of a composite model.

    A composite model nests a config for each of its parts; the decoder's is named after text or language
    (`text_config`, `language_config`, `llm_config`), at any depth (`thinker_config.text_config`). It is the first part
    that says how many layers it has; where none does, the first that is named so.
    """
    parts = list(_text_first(config))
    counted = (part for _key, part in parts if _own_layer_count(part) is not None)
    named = (part for key, part in parts if _names_text(key))
    return next(counted, next(named, config))


def layer_count(config: dict[str, Any]) -> int:
    """The number of decoder layers of the model.

    Raises:
        ZppError: (INVALID) `config` does not say it.
    """
    count = stated_layer_count(config)
    if count is None:
        raise unknown_layer_count()
    return count


def stated_layer_count(config: dict[str, Any]) -> int | None:
    """The number of decoder layers, or None where `config` does not say it."""
    return _own_layer_count(text_config(config))


def unknown_layer_count(candidates: Sequence[str] = ()) -> ZppError:
    """The refusal of a model whose config does not say how many layers it has, and whose tensors leave a choice."""
    could_be = f", and its layers could be {' or '.join(sorted(candidates))}" if candidates else ""
    return invalid_error(
        f"config.json does not say how many layers the model has (looked for {', '.join(LAYER_COUNT_KEYS)}){could_be}",
        "Give --total-layers, or add num_hidden_layers to config.json.",
    )


def context_length(config: dict[str, Any]) -> int | None:
    """How many tokens a sequence of this model may have; None where `config` sets no limit."""
    part = text_config(config)
    return next((part[key] for key in CONTEXT_KEYS if isinstance(part.get(key), int) and part[key] > 0), None)


def takes_more_than_text(config: dict[str, Any]) -> bool:
    """Whether a part of the config, at any depth, is named after images, sound or the like."""
    parts = [(key, value) for key, value in config.items() if isinstance(value, dict) and key.endswith("config")]
    return any(words_of(key) & TOWER_WORDS or takes_more_than_text(value) for key, value in parts)


def _without_config(directory: Path) -> ZppError:
    """The refusal of a directory that holds no config.json, with what it seems to be instead."""
    if any(directory.glob("stage_*/config.json")):
        return invalid_error(
            f"{directory} holds no config.json: it is a split, not a checkpoint",
            "Name the original checkpoint, or make it whole again with zpptool join.",
        )
    if (directory / "params.json").is_file():
        return invalid_error(
            f"{directory} holds no config.json: these are Mistral's own files, not the Hugging Face ones",
            "Download config.json and the model*.safetensors files of the same model.",
        )
    if (directory / "model_index.json").is_file():
        return invalid_error(
            f"{directory} holds no config.json: it is a pipeline of diffusers, not a language model",
            "Name a directory that holds a decoder-only language model.",
        )
    return invalid_error(f"{directory} holds no config.json", "Name a Hugging Face checkpoint directory.")


def _own_layer_count(part: dict[str, Any]) -> int | None:
    for key in LAYER_COUNT_KEYS:
        value = part.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_LAYERS:
            return value
    return next((len(part[key]) for key in LAYER_LIST_KEYS if isinstance(part.get(key), list) and part[key]), None)


def _text_first(config: dict[str, Any], key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """`config`, then its nested configs: those of a text or language part before the others, each depth first.

    A tower's config is left out: where the text part keeps silent, the tower's layers must not stand for the decoder's.
    """
    yield key, config
    nested = [
        (key, value)
        for key, value in config.items()
        if isinstance(value, dict) and key.endswith("config") and not words_of(key) & (TOWER_WORDS | SPEAKER_WORDS)
    ]
    for inner, value in sorted(nested, key=lambda item: not _names_text(item[0])):
        yield from _text_first(value, inner)


def _names_text(key: str) -> bool:
    return any(word in key for word in ("text", "language", "llm", "thinker", "decoder"))
