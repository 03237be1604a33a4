# SPDX-License-Identifier: Apache-2.0
"""Whether the GPUs that stages are to run on are there, and hold the weights at least."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from zpptool.config.gpu_discovery import Card, find_card
from zpptool.config.gpu_pool import Group
from zpptool.console import human_bytes
from zpptool.errors import ZppError, usage_error


def refuse_unseen(groups: Sequence[Group], found: Sequence[Card]) -> None:
    """Refuse chosen GPUs on a machine on which none is found.

    Raises:
        ZppError: (USAGE) none is.
    """
    if not found:
        wanted = dict.fromkeys(name for group in groups for name in group)
        raise usage_error(
            f"--gpu-ids {','.join(wanted)}: nvidia-smi finds no GPU on this machine",
            "Leave it out to run on the CPU. GPUs of another maker are named by their own variable first"
            " (HIP_VISIBLE_DEVICES, ZE_AFFINITY_MASK).",
        )


def refuse_full(groups: Sequence[Group], needed: Sequence[int], found: Sequence[Card]) -> None:
    """Refuse GPUs that cannot hold the weights of the stages that are to share them.

    Args:
        groups: each stage's GPUs.
        needed: bytes of each stage's weights on one of its GPUs.
        found: the GPUs whose memory is known; others are passed over.

    Raises:
        ZppError: (FAILURE) the weights do not fit.
    """
    sums: dict[Card, int] = defaultdict(int)
    for group, size in zip(groups, needed, strict=True):
        for name in group:
            if (card := find_card(found, name)) is not None:
                sums[card] += size
    for card, weights in sums.items():
        if card.free is not None and weights > card.free:
            raise ZppError(
                f"GPU {card.index} has {human_bytes(card.free)} free, and the weights for it take"
                f" {human_bytes(weights)}",
                "Give that stage fewer layers (--ranges), or another GPU.",
            )
