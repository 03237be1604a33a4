# SPDX-License-Identifier: Apache-2.0
"""BLAKE3 digests (64 hex digits) of a file, a config, a model, and a model's content.

Those of a config and a model do not depend on layout: the order of tensors, the number of shards, and whitespace in
config.json make no difference. The model digest is the same for a checkpoint and for each of its stage directories.
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
    """Return the digest of `content`."""
    return blake3(content).hexdigest()


def digest_file(path: Path) -> str:
    """Return the digest of a file, read in chunks.

    Raises:
        ZppError: (INVALID) it is not a regular file; OSError: it cannot be read.
    """
    hasher = blake3()
    with open_regular(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the digest of a parsed config.json."""
    return _digest_json(config)


def tensors_digest(tensors: Iterable[TensorShape]) -> str:
    """Return the digest of a model's tensor list: every name once, with dtype and shape."""
    return _digest_json(sorted((name, dtype, list(shape)) for name, dtype, shape in tensors))


def model_digest_of(config: Mapping[str, Any], tensors: str) -> str:
    """Return the model digest, from the parsed config and the `tensors_digest`."""
    return _digest_json({"config": config_digest(config), "tensors": tensors})


def source_digest_of(hashes: Mapping[str, str]) -> str:
    """Return the digest of a model's content, from the digest of each tensor's bytes by tensor name."""
    return _digest_json(sorted(hashes.items()))


def _digest_json(value: Any) -> str:
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
