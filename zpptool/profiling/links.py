# SPDX-License-Identifier: Apache-2.0
"""Measures the links between two hosts, both ways: round trip, and throughput by the size of messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from zpptool.planner.device_profile import LINKS_VERSION, LinkRate, LinksFile, LinkSpeed, Source
from zpptool.profiling.link_ends import MOST_MESSAGES, LinkEnd
from zpptool.profiling.measure import now

SIZES = (4 << 10, 64 << 10, 1 << 20, 8 << 20)
"""Bytes of the messages: one token of a small model, up to a long prompt of a large one."""
WARM_UP = 20
"""Round trips that are not counted: a link chooses its channel, and the network learns its routes."""
ROUND_TRIPS = 100
BURSTS = 5
"""How often each throughput is measured; the median counts."""
BURST_S = 0.2
"""About how long the messages of one burst take."""


def measure_links(
    end: LinkEnd, own: str, other: str, report: Callable[[str], None], sizes: Sequence[int] = SIZES
) -> tuple[LinkSpeed, LinkSpeed]:
    """Measure the link to the other end, and the one from there.

    Args:
        end: this end; the other one responds.
        own, other: the names of the hosts.
        report: takes a line about the progress.
        sizes: of messages, in bytes, ascending.
    """
    report(f"waiting for {other}")
    for _ in range(WARM_UP):
        end.round_trip()
    trip = median(end.round_trip() for _ in range(ROUND_TRIPS))
    there: list[LinkRate] = []
    back: list[LinkRate] = []
    for size in sizes:
        report(f"round trip {trip * 1e6:.0f} us; measuring messages of {size} bytes")
        for rates, rate in ((there, end.send_rate), (back, end.receive_rate)):
            first = rate(size, 4, trip)
            count = min(max(int(first * BURST_S / size), 2), MOST_MESSAGES)
            rates.append(LinkRate(bytes=size, bytes_per_second=median(rate(size, count, trip) for _ in range(BURSTS))))
    end.finish()
    at = now()
    return (
        LinkSpeed(
            origin=own, target=other, round_trip_seconds=trip, rates=tuple(there), source=Source.MEASURED, at=at
        ),
        LinkSpeed(
            origin=other, target=own, round_trip_seconds=trip, rates=tuple(back), source=Source.MEASURED, at=at
        ),
    )  # fmt: skip


def burst(size: int, rate: float) -> tuple[int, int]:
    """How many messages a burst has, and how many bursts there are: fewer where a message takes long.

    Args:
        size: bytes of a message.
        rate: bytes per second of the first one.
    """
    seconds = size / rate
    return min(max(int(BURST_S / seconds), 1), MOST_MESSAGES), BURSTS if seconds < BURST_S else 2


def with_links(known: Iterable[LinkSpeed], measured: Sequence[LinkSpeed]) -> LinksFile:
    """The links that are known, with those that were measured now in the place of older ones."""
    new = {(link.origin, link.target) for link in measured}
    kept = [link for link in known if (link.origin, link.target) not in new]
    return LinksFile(version=LINKS_VERSION, links=(*kept, *measured))
