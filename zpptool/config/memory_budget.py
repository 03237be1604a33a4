# SPDX-License-Identifier: Apache-2.0
"""What stages take of a machine's memory: their weights, whether these fit, and what is left for KV caches.

Only what is certain to fail is refused. Activations and KV caches come on top of the weights, and engines size them by
the memory that is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from zpptool.checkpoint.model_config import text_config
from zpptool.checkpoint.stage_tensors import load_plan
from zpptool.config.stage_spec import StageSpec
from zpptool.console import human_bytes
from zpptool.errors import ZppError
from zpptool.partition import LayerRange
from zpptool.planner.weights import loaded_bytes

CGROUP = Path("/sys/fs/cgroup")
"""The cgroup v2 directory of this container; see memory.max and memory.current in the kernel's cgroup-v2.rst."""
ITEMSIZES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
KV_SHARE = 0.5
"""The part of the memory beside the weights that vLLM's stages on one CPU divide among their KV caches."""
MOST_KV_BYTES = 4 << 30
"""The most that one of those stages takes for its KV cache."""


def stage_bytes(spec: StageSpec) -> int:
    """Bytes of a stage's weights once loaded: floating-point ones in the dtype that the stage computes in.

    Raises:
        ZppError: (INVALID) the checkpoint cannot be read, or not divided like that.
    """
    itemsize = ITEMSIZES.get(spec.dtype)
    return sum(loaded_bytes(tensor, itemsize) for tensor in load_plan(spec.directory, spec.stage, spec.ranges))


def free_memory() -> int:
    """Bytes of memory that are available on this machine, or in this container."""
    available = psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int((CGROUP / "memory.current").read_text()))
    return max(available, 0)


def refuse_too_much(needed: Sequence[int], free: int) -> None:
    """Refuse weights that do not fit into this machine's memory together.

    Args:
        needed: bytes of weights of each stage that is to run here.
        free: bytes that are available.

    Raises:
        ZppError: (FAILURE) they do not fit.
    """
    if sum(needed) > free:
        raise ZppError(
            f"the weights of all stages take {human_bytes(sum(needed))}, and {human_bytes(free)} of memory are free",
            "Run fewer stages on this machine (zpptool plan --hosts), or end what else uses memory.",
        )


def kv_share(needed: Sequence[int], free: int) -> int:
    """Bytes that each of several stages on one CPU takes for its KV cache by default.

    vLLM's own default would give nearly all available memory to each worker.

    Args:
        needed, free: as for `refuse_too_much`, which has accepted them.
    """
    return min(int((free - sum(needed)) * KV_SHARE / len(needed)), MOST_KV_BYTES)


def kv_bytes_per_token(config: dict[str, object], layers: LayerRange, itemsize: int = 2) -> int | None:
    """Bytes of the KV cache of `layers` for one token; None where it does not follow from config.json.

    Keys and values of every head: 2 x layers x key-value heads x head size x bytes per number. Attention with a
    compressed cache (MLA) does not follow this.

    Args:
        config: the content of config.json.
        layers: which layers.
        itemsize: bytes per number.
    """
    text = text_config(config)
    heads = text.get("num_attention_heads")
    kv_heads = text.get("num_key_value_heads", heads)
    hidden = text.get("hidden_size")
    size = text.get("head_dim") or (hidden // heads if isinstance(hidden, int) and isinstance(heads, int) else None)
    if "kv_lora_rank" in text or not isinstance(kv_heads, int) or not isinstance(size, int):
        return None
    return 2 * layers.count * kv_heads * size * itemsize
