# SPDX-License-Identifier: Apache-2.0
"""When compression pays: the rule, independent of sockets and clocks.

The invariant: `auto` compresses only on a link whose speed was measured, and only while that makes a message arrive
sooner by a tenth or more. So a fast link pays for one comparison a message.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from zpptool.wire.compression.bandwidth import Rate, updated_speed
from zpptool.wire.message.framing import CHUNK_BYTES


class WireCodec(StrEnum):
    """Whether a link compresses what it sends."""

    NONE = "none"
    ZSTD = "zstd"
    """Every message that is large enough."""
    AUTO = "auto"
    """Where it makes messages arrive sooner."""


SHRINK_FROM_BYTES = 16 << 10
"""Messages of fewer bytes are sent uncompressed: they take less time than one packet's latency."""
BURST_BYTES = 256 << 10
"""A message of this size keeps a link busy long enough to measure its speed."""
_GAIN = 0.9
_THIN = 250e6
"""Bytes a second from which on compressing on one core cannot pay: nothing is tried there."""
_WEIGHT = 0.2
_AGAIN = 64
_EVERY = 8
"""The connection is measured for each of the first messages up to this number, and then for one in this many: a
measurement costs as much as a small send. For large messages it is measured each time, so that a link that was fast
only at the beginning is soon known."""


class Speeds(NamedTuple):
    """What was measured; None for what was not measured yet.

    Attributes:
        link: bytes a second that the link delivers when it has enough to do.
        shrink: bytes a second that are compressed. Decompression is several times as fast.
        ratio: bytes before and after, 1 and more.
    """

    link: float | None = None
    shrink: float | None = None
    ratio: float | None = None


def worth_it(nbytes: int, speeds: Speeds) -> bool:
    """Whether a message of that size arrives sooner compressed; also True where only a try can tell.

    A chunk is compressed while the one before is being sent: a message takes the time of both steps for its first
    chunk, and then that of the slower step for each other chunk.
    """
    if nbytes < SHRINK_FROM_BYTES or speeds.link is None or speeds.link > _THIN:
        return False
    if speeds.shrink is None or speeds.ratio is None:
        return True
    first = min(nbytes, CHUNK_BYTES)
    shrunk, sent = 1 / speeds.shrink, 1 / (speeds.ratio * speeds.link)
    seconds = first * (shrunk + sent) + (nbytes - first) * max(shrunk, sent)
    return seconds < _GAIN * nbytes / speeds.link


class AdaptiveCompression:
    """Decides for one link which messages are compressed, from moving means of what was measured.

    Args:
        codec: what the user chose.

    Attributes:
        speeds: what was measured so far.
    """

    def __init__(self, codec: WireCodec) -> None:
        self._codec = codec
        self._measured = 0
        self._declined = 0
        self._largest = 0
        self.speeds = Speeds()

    def decide(self, nbytes: int, measure: Callable[[], Rate | None]) -> bool:
        """Whether to compress a message of that size.

        Args:
            nbytes: the payload that goes over the socket.
            measure: measures the connection; called only where the result matters.
        """
        if self._codec is WireCodec.NONE or nbytes < SHRINK_FROM_BYTES:
            return False
        if self._codec is WireCodec.ZSTD:
            return True
        link = self.speeds.link
        if nbytes >= CHUNK_BYTES or self._measured < _EVERY or self._measured % _EVERY == 0:
            link = updated_speed(link, measure(), bursts=self._largest >= BURST_BYTES)
        self._measured += 1
        self._largest = max(self._largest, nbytes)
        self.speeds = self.speeds._replace(link=link)
        if worth_it(nbytes, self.speeds):
            return True
        self._declined += 1
        if self._declined % _AGAIN:
            return False
        return worth_it(nbytes, Speeds(link))  # other tensors may compress better: try again

    def record(self, nbytes: int, shrunk_to: int, seconds: float) -> None:
        """Account for a chunk of `nbytes` that was compressed to `shrunk_to` bytes in that time."""
        speed, ratio = nbytes / max(seconds, 1e-9), nbytes / max(shrunk_to, 1)
        was = self.speeds
        if was.shrink is not None and was.ratio is not None:
            speed = was.shrink + _WEIGHT * (speed - was.shrink)
            ratio = was.ratio + _WEIGHT * (ratio - was.ratio)
        self.speeds = Speeds(was.link, speed, ratio)
