# SPDX-License-Identifier: Apache-2.0
"""Identities in 64 hex digits (BLAKE3): of a file, a config, a model, a model's content.

Each is a function of meaning, not of layout: it does not change with the order of tensors, the number of shards, or
the blanks in config.json. The model digest is the same for a checkpoint and for each of its stage directories.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from zpptool.regular_file import open_regular

CHUNK_BYTES = 4 * 1024 * 1024

TensorShape = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape."""


def digest_bytes(content: bytes) -> str:
    """The digest of these bytes."""
    return blake3(content).hexdigest()


def digest_file(path: Path) -> str:
    """The digest of a file's content, read in chunks; raises OSError, and ZppError where it is no regular file."""
    hasher = blake3()
    with open_regular(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def config_digest(config: Mapping[str, Any]) -> str:
    """The digest of a parsed config.json."""
    return _digest_json(config)


def tensors_digest(tensors: Iterable[TensorShape]) -> str:
    """The digest of a model's tensor list: every name once, with dtype and shape."""
    return _digest_json(sorted((name, dtype, list(shape)) for name, dtype, shape in tensors))


def model_digest_of(config: Mapping[str, Any], tensors: str) -> str:
    """The model digest, from its config and its `tensors_digest`."""
    return _digest_json({"config": config_digest(config), "tensors": tensors})


def source_digest_of(hashes: Mapping[str, str]) -> str:
    """The digest of a model's content, from the digest of every tensor's bytes."""
    return _digest_json(sorted(hashes.items()))


def _digest_json(value: Any) -> str:
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
