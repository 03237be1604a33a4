# SPDX-License-Identifier: Apache-2.0
"""What is derived from a run's first start and a line's `custom_id`: ids, times and the seed. Pure.

A line that is computed again, because the run was killed before its result was safe, gets the same ones. Its seed
depends on the `custom_id` alone, so its tokens are drawn from the same random stream in every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from zpptool.batch.request_line import GENERATING, RequestLine

SEED_BITS = 53
"""A seed is a whole number that every JSON parser reads exactly."""
DIGEST_BYTES = 16
_ID_DIGITS = 32


def custom_id_digest(custom_id: str) -> bytes:
    """What stands for a `custom_id` in the journal and in the search for duplicates."""
    return blake3(custom_id.encode()).digest(DIGEST_BYTES)


def content_digest(content: bytes) -> bytes:
    """The digest of a line's content."""
    return blake3(content).digest(DIGEST_BYTES)


def seed_of(custom_id: str) -> int:
    """The seed of a line that has none."""
    return int.from_bytes(blake3(b"seed\0" + custom_id.encode()).digest(8)) >> (64 - SEED_BITS)


def derived_hex(purpose: str, started: int, name: str) -> str:
    """32 hexadecimal digits.

    Args:
        purpose: distinguishes the ids of one line.
        started: when the run was first started, in seconds since the epoch.
        name: the line's `custom_id`, or what stands for it.
    """
    return blake3(f"{purpose}\0{started}\0{name}".encode()).hexdigest()[:_ID_DIGITS]


def body_to_send(line: RequestLine, defaults: Mapping[str, Any], priority: int | None) -> dict[str, Any]:
    """The body of a line's request: with the run's defaults for fields that it does not set, and with a seed.

    Args:
        line: the line.
        defaults: values by field.
        priority: the scheduling priority, for an engine that has priorities; None for none.
    """
    body = {**defaults, **line.body}
    if line.url in GENERATING and body.get("seed") is None and body.get("temperature") != 0:
        body["seed"] = seed_of(line.custom_id)
    if priority is not None and line.url in GENERATING:
        body.setdefault("priority", priority)
    return body
