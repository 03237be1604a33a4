# SPDX-License-Identifier: Apache-2.0
"""Read a checkpoint's config.json, without torch or transformers. The config is never modified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zpptool.checkpoint.lfs_pointers import is_lfs_pointer, lfs_fault
from zpptool.checkpoint.not_a_checkpoint import not_a_directory, without_config
from zpptool.checkpoint.roles import SPEAKER_WORDS, TOWER_WORDS, words_of
from zpptool.document import read_json
from zpptool.errors import ZppError, invalid_error

MAX_CONFIG_BYTES = 64 * 1024 * 1024
MAX_LAYERS = 1_000_000
"""A larger number in a config is not accepted as a layer count."""
LAYER_COUNT_KEYS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers", "decoder_layers",
    "num_decoder_layers", "layers"
)  # fmt: skip
"""Config keys for the number of decoder layers, the most common one first."""
LAYER_LIST_KEYS = ("layers_block_type", "layer_types")
"""Config keys of lists with one entry per layer; their length is used where no layer count is given."""

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""Config keys for the maximum sequence length, in tokens."""


def read_config(directory: Path) -> dict[str, Any]:
    """Return the checkpoint's parsed config.json.

    Raises:
        ZppError: (INVALID) `directory` is not a directory, or has no config.json that is a JSON object.
    """
    if not directory.is_dir():
        raise not_a_directory(directory)
    path = directory / "config.json"
    if not path.exists():
        raise without_config(directory)
    if is_lfs_pointer(path) and (pointer := lfs_fault(directory, [path.name])):
        raise pointer
    config = read_json(path, MAX_CONFIG_BYTES, "config")
    if not isinstance(config, dict):
        raise invalid_error(f"{path} is not a JSON object")
    return config


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of `config` that describes the decoder: itself, or the nested text config of a composite model.

    A composite model nests a config for each of its parts; the decoder's is named after text or language
    (`text_config`, `language_config`, `llm_config`), at any depth (`thinker_config.text_config`). The first part with
    a layer count is taken; if none has one, the first part with such a name.
    """
    parts = list(_text_first(config))
    counted = (part for _key, part in parts if _own_layer_count(part) is not None)
    named = (part for key, part in parts if _names_text(key))
    return next(counted, next(named, config))


def decoder_configs(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of `config` that can describe the decoder: those that state its layer count, or none at all."""
    count = stated_layer_count(config)
    return [part for _key, part in _text_first(config) if _own_layer_count(part) in (None, count)]


def layer_count(config: dict[str, Any]) -> int:
    """Return the number of decoder layers of the model.

    Raises:
        ZppError: (INVALID) `config` does not state it.
    """
    count = stated_layer_count(config)
    if count is None:
        raise unknown_layer_count()
    return count


def stated_layer_count(config: dict[str, Any]) -> int | None:
    """Return the number of decoder layers, or None if `config` does not state it."""
    return _own_layer_count(text_config(config))


def unknown_layer_count(candidates: Sequence[str] = ()) -> ZppError:
    """Build the error for a model whose config states no layer count and whose tensors do not settle it either.

    Args:
        candidates: tensor name prefixes that could be the decoder layers.
    """
    could_be = f", and its layers could be {' or '.join(sorted(candidates))}" if candidates else ""
    return invalid_error(
        f"config.json does not state the number of layers (looked for {', '.join(LAYER_COUNT_KEYS)}){could_be}",
        "Give --total-layers, or add num_hidden_layers to config.json.",
    )


def context_length(config: dict[str, Any]) -> int | None:
    """Return the maximum sequence length in tokens, or None if `config` sets no limit."""
    part = text_config(config)
    return next((part[key] for key in CONTEXT_KEYS if isinstance(part.get(key), int) and part[key] > 0), None)


def takes_more_than_text(config: dict[str, Any]) -> bool:
    """Return whether a part of the config, at any depth, is named after another modality (images, sound, ...)."""
    parts = [(key, value) for key, value in config.items() if isinstance(value, dict) and key.endswith("config")]
    return any(words_of(key) & TOWER_WORDS or takes_more_than_text(value) for key, value in parts)


def _own_layer_count(part: dict[str, Any]) -> int | None:
    for key in LAYER_COUNT_KEYS:
        value = part.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_LAYERS:
            return value
    return next((len(part[key]) for key in LAYER_LIST_KEYS if isinstance(part.get(key), list) and part[key]), None)


def _text_first(config: dict[str, Any], key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `config`, then its nested configs depth first, text and language parts before the others.

    A tower's config is skipped: its layer count must not be taken for the decoder's if the text part states none.
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
