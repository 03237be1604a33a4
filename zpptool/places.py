# SPDX-License-Identifier: Apache-2.0
"""The places of a ring: the head and the stages, and their names."""

from __future__ import annotations

HEAD = -1
"""The head, where a stage index is expected."""


def place_name(place: int) -> str:
    """The name of a place on the ring: `head` or `stage 3`."""
    return "head" if place == HEAD else f"stage {place}"
