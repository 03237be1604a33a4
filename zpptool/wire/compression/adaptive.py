# SPDX-License-Identifier: Apache-2.0
"""When compressing is worth it: the rule, apart from sockets and clocks.

The invariant: `auto` compresses only on a link whose speed was measured, and only while that makes a message arrive
sooner by a tenth or more; of a link that nobody measured it says no. So a fast link pays for one comparison a message.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from zpptool.wire.compression.bandwidth import Rate, believed
from zpptool.wire.message.framing import CHUNK_BYTES


class WireCodec(StrEnum):
    """Whether a link compresses what it sends."""

    NONE = "none"
    ZSTD = "zstd"
    """Whatever is large enough."""
    AUTO = "auto"
    """Where it makes messages arrive sooner."""


SHRINK_FROM_BYTES = 16 << 10
"""Messages of fewer bytes take less than a packet's way: they are left as they are."""
BURST_BYTES = 256 << 10
"""A message of this size takes a link long enough for its speed to be seen."""
_GAIN = 0.9
_THIN = 250e6
"""Bytes a second from which on compressing, on one core, cannot win: nothing is tried out there."""
_WEIGHT = 0.2
_AGAIN = 64
_EVERY = 8
"""The connection is asked for each of so many messages, and then for one in so many: that costs as much as a small
send. For large messages it is asked each time, so that a link that only began fast is soon known."""


class Speeds(NamedTuple):
    """What was measured; None for what was not yet.

    Attributes:
        link: bytes a second that the link delivers when it has enough to do.
        shrink: bytes a second that are compressed. Expanding is several times as fast.
        ratio: bytes before and after, 1 and more.
    """

    link: float | None = None
    shrink: float | None = None
    ratio: float | None = None


def worth_it(nbytes: int, speeds: Speeds) -> bool:
    """Whether a message of that size arrives sooner compressed; yes also where a try is needed to know.

    Chunks are compressed one after the other while those before are under way: a message takes the one step of its
    first chunk, and then the slower of both for each.
    """
    if nbytes < SHRINK_FROM_BYTES or speeds.link is None or speeds.link > _THIN:
        return False
    if speeds.shrink is None or speeds.ratio is None:
        return True
    first = min(nbytes, CHUNK_BYTES)
    shrunk, sent = 1 / speeds.shrink, 1 / (speeds.ratio * speeds.link)
    seconds = first * (shrunk + sent) + (nbytes - first) * max(shrunk, sent)
    return seconds < _GAIN * nbytes / speeds.link


class Gauge:
    """What one link's codec has shown so far, as a moving mean.

    Args:
        codec: what was asked for.
    """

    def __init__(self, codec: WireCodec) -> None:
        self._codec = codec
        self._asked = 0
        self._refused = 0
        self._most = 0
        self.speeds = Speeds()

    def decide(self, nbytes: int, measure: Callable[[], Rate | None]) -> bool:
        """Whether to compress a message of that size.

        Args:
            measure: asks the connection; only where the answer matters.
        """
        if self._codec is WireCodec.NONE or nbytes < SHRINK_FROM_BYTES:
            return False
        if self._codec is WireCodec.ZSTD:
            return True
        link = self.speeds.link
        if nbytes >= CHUNK_BYTES or self._asked < _EVERY or self._asked % _EVERY == 0:
            link = believed(link, measure(), bursts=self._most >= BURST_BYTES)
        self._asked += 1
        self._most = max(self._most, nbytes)
        self.speeds = self.speeds._replace(link=link)
        if worth_it(nbytes, self.speeds):
            return True
        self._refused += 1
        if self._refused % _AGAIN:
            return False
        return worth_it(nbytes, Speeds(link))  # other tensors may shrink better: try again

    def note(self, nbytes: int, shrunk_to: int, seconds: float) -> None:
        """A chunk was compressed."""
        speed, ratio = nbytes / max(seconds, 1e-9), nbytes / max(shrunk_to, 1)
        was = self.speeds
        if was.shrink is not None and was.ratio is not None:
            speed = was.shrink + _WEIGHT * (speed - was.shrink)
            ratio = was.ratio + _WEIGHT * (ratio - was.ratio)
        self.speeds = Speeds(was.link, speed, ratio)
