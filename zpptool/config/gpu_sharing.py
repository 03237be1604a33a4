# SPDX-License-Identifier: Apache-2.0
"""How stages of vLLM that share a GPU share its memory: pure arithmetic.

Alone, vLLM takes nearly all memory of a GPU, and measures what others take on it as its own. So each stage that shares
one gets engine arguments for its part, and for how many bytes of that are its KV cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from zpptool.config.gpu_pool import Group
from zpptool.console import human_bytes
from zpptool.errors import ZppError, invalid_error, usage_error

UTILIZATION, KV_BYTES = "--gpu-memory-utilization", "--kv-cache-memory-bytes"
VLLMS_UTILIZATION = 0.92
"""The part of a GPU's memory that vLLM 0.32 and 0.33 take by default."""
ROOM_BYTES = 2 << 30
"""What a stage needs beside weights and KV cache: CUDA's own context, activations, graphs. An estimate: it was never
measured."""


def stages_on(groups: Sequence[Group]) -> list[int]:
    """For each stage, how many stages there are on that of its GPUs that has the most; 1 where it shares none."""
    on = Counter(name for group in groups for name in group)
    return [max((on[name] for name in group), default=1) for group in groups]


def share_words(
    groups: Sequence[Group], weights: Sequence[int], totals: Mapping[str, int], given: Sequence[str]
) -> list[tuple[str, ...]]:
    """The engine arguments by which each stage keeps to its part; none for one that shares nothing.

    Args:
        groups: each stage's GPUs.
        weights: bytes of each stage's weights on one of its GPUs.
        totals: bytes of the memory of each GPU that is known.
        given: the engine arguments that the user gave for every stage.

    Raises:
        ZppError: (USAGE) the user's parts are more than the whole, or the part cannot be known; (FAILURE) a stage's
            weights leave no room in its part.
    """
    own, has_cache = _utilization(given), _value(given, KV_BYTES) is not None
    words: list[tuple[str, ...]] = []
    for stage, (group, count, size) in enumerate(zip(groups, stages_on(groups), weights, strict=True)):
        if count == 1:
            words.append(())
            continue
        shared = ", ".join(group)
        if own is not None and own * count > 1:
            raise usage_error(
                f"{count} stages share GPU {shared}, and {UTILIZATION} {own:g} is for each of them",
                f"Give at most {int(100 / count) / 100:g}, or leave it out.",
            )
        part = own if own is not None else int(1000 * VLLMS_UTILIZATION / count) / 1000
        said = () if own is not None else (UTILIZATION, f"{part:g}")
        if not has_cache:
            if not all(name in totals for name in group):
                raise usage_error(
                    f"{count} stages share GPU {shared}, and the size of its memory is not known",
                    f"Give the cache of each: -- {KV_BYTES} BYTES; or give each stage a GPU of its own.",
                )
            said = (*said, KV_BYTES, str(_cache(stage, count, part, min(totals[name] for name in group), size, shared)))
        words.append(said)
    return words


def _cache(stage: int, count: int, part: float, total: int, weights: int, shared: str) -> int:
    cache = int(total * part) - weights - ROOM_BYTES
    if cache <= 0:
        raise ZppError(
            f"{count} stages share GPU {shared}: each may take {human_bytes(int(total * part))}, and stage {stage}"
            f" needs {human_bytes(weights)} for its weights and about {human_bytes(ROOM_BYTES)} beside them",
            "Use more GPUs, give that stage fewer layers (--ranges), or set the size of its cache yourself:"
            f" -- {KV_BYTES} BYTES.",
        )
    return cache


def _utilization(given: Sequence[str]) -> float | None:
    text = _value(given, UTILIZATION)
    try:
        return None if text is None else float(text)
    except ValueError as cause:
        raise invalid_error(f"{UTILIZATION} {text}: not a number") from cause


def _value(given: Sequence[str], flag: str) -> str | None:
    """The last value that the user gave for a flag, in any spelling; None where it is not given."""
    found = None
    for word, following in zip_longest(given, given[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            found = value if equals else following
    return found
