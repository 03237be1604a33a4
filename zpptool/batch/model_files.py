# SPDX-License-Identifier: Apache-2.0
"""What identifies a pipeline that a batch starts itself: its model, its plan, and how it computes.

The size of the KV cache is left out: it follows from the memory that is free at a start, and changes no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from zpptool.config.engine_arguments import has_option
from zpptool.config.gpu_sharing import KV_BYTES
from zpptool.config.stage_spec import StageSpec

_READ_WHOLE = (".json", ".jinja", ".model", ".txt")
_MAX_WHOLE_BYTES = 64 << 20


def pipeline_identity(specs: tuple[StageSpec, ...]) -> dict[str, str]:
    """The identity of a pipeline, by what each part is called in messages.

    Args:
        specs: of its stages, before any port was chosen.
    """
    first = specs[0]
    directories = sorted({spec.model for spec in specs})
    return {
        "model": first.served_name or str(Path(first.model).resolve()),
        "revision": first.source,
        "model files": files_digest([Path(directory) for directory in directories]),
        "plan": " ".join(f"{start}-{end}" for start, end in first.partition),
        "engine": str(first.engine),
        "dtype": first.dtype,
        "device": first.runtime.device,
        "engine arguments": " ".join(without_cache_size(first.engine_args)),
    }


def without_cache_size(arguments: Sequence[str]) -> list[str]:
    """Engine arguments without the option that sets the size of the KV cache, and without its value."""
    kept: list[str] = []
    is_value = False
    for argument in arguments:
        if is_value or has_option([argument], KV_BYTES):
            is_value = not is_value and "=" not in argument
        else:
            kept.append(argument)
    return kept


def files_digest(directories: list[Path]) -> str:
    """A digest of the directories' files: the content of the small ones (configs, sampling defaults, tokenizer,
    templates), and name and size of the others. Weights that were replaced by others of the same size are not noticed.
    """
    digest = blake3()
    for directory in directories:
        for path in sorted(each for each in directory.rglob("*") if each.is_file()):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(directory)}\0{size}\0".encode())
            if path.suffix in _READ_WHOLE and size <= _MAX_WHOLE_BYTES:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
