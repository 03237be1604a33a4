# SPDX-License-Identifier: Apache-2.0
"""Checks before a start on GPUs: that there are any, and that each has room for the weights of its stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from zpptool.config.gpu_discovery import Card, find_card
from zpptool.config.gpu_pool import Group
from zpptool.console import human_bytes
from zpptool.errors import ZppError, usage_error


def refuse_unseen(groups: Sequence[Group], found: Sequence[Card]) -> None:
    """Refuse GPUs that were chosen on a machine without any.

    Args:
        groups: the GPUs chosen for each stage.
        found: the GPUs of this machine.

    Raises:
        ZppError: (USAGE) this machine has none.
    """
    if not found:
        chosen = dict.fromkeys(name for group in groups for name in group)
        raise usage_error(
            f"--gpu-ids {','.join(chosen)}: nvidia-smi finds no GPU on this machine",
            "Leave it out to run on the CPU. GPUs of another maker are named by their own variable first"
            " (HIP_VISIBLE_DEVICES, ZE_AFFINITY_MASK).",
        )


def refuse_full(groups: Sequence[Group], needed: Sequence[int], found: Sequence[Card]) -> None:
    """Refuse GPUs that have too little free memory for the weights of the stages on them.

    Args:
        groups: the GPUs of each stage.
        needed: bytes of each stage's weights on one of its GPUs.
        found: the GPUs whose memory is known; others are not checked.

    Raises:
        ZppError: (FAILURE) the weights do not fit.
    """
    weights_on: dict[Card, int] = defaultdict(int)
    for group, size in zip(groups, needed, strict=True):
        for name in group:
            if (card := find_card(found, name)) is not None:
                weights_on[card] += size
    for card, weights in weights_on.items():
        if card.free is not None and weights > card.free:
            raise ZppError(
                f"GPU {card.index} has {human_bytes(card.free)} free, and the weights for it take"
                f" {human_bytes(weights)}",
                "Give that stage fewer layers (--ranges), or another GPU.",
            )
