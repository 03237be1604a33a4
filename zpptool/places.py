# SPDX-License-Identifier: Apache-2.0
"""places."""

from __future__ import annotations

HEAD = -1
"""The head's place where a stage index is expected: the source of its messages, the owner of its links."""


def place_name(place: int) -> str:
    """How a person calls a place on the ring: `head` or `stage 3`."""
    return "head" if place == HEAD else f"stage {place}"
