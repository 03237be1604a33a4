# SPDX-License-Identifier: Apache-2.0
"""A ring's status as Prometheus metrics: a pure function, so whoever has a status can serve them.

Every sample has the labels `stage` (a number, or `head`) and, where it is of a link, `peer` (the place it leads to).
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from zpptool.pipeline.ring.status import LinkStatus, RingStatus, StageStatus
from zpptool.wire.errors import HEAD
from zpptool.wire.tally import ROUND_TRIP_BOUNDS_S

PREFIX = "zpp:"
_LINK_STATES = ("waiting", "connected", "lost", "refused")

_LINK_COUNTERS = {
    "link_sent_bytes": ("bytes_sent", "Bytes of the messages that were sent."),
    "link_received_bytes": ("bytes_received", "Bytes of the messages that the receiver has handed on."),
    "link_sent_messages": ("messages_sent", "Messages that were sent."),
    "link_received_messages": ("messages_received", "Messages that the receiver has handed on."),
    "link_wait_seconds": ("wait_s", "Time that senders have waited for the peer, or for room in its window."),
    "link_send_seconds": ("send_s", "Time that handing messages to the socket has taken."),
    "link_refused_peers": ("refused", "Peers and connections that were turned away."),
}
_STAGE_COUNTERS = {
    "stage_steps": ("steps", "Calls that the stage has done."),
    "stage_receive_seconds": ("receive_s", "Time that the stage has waited for the tensors of the one before."),
}
_RING_COUNTERS = {
    "recoveries": ("recoveries", "How often the ring became whole again after a loss."),
    "recovery_stall_seconds": ("stall_s", "Time that the ring was not whole because of losses."),
    "recovery_recomputed_tokens": ("recomputed_tokens", "Tokens that had to be computed again because of losses."),
}
_STAGE_GAUGES = {
    "stage_memory_bytes": ("memory_bytes", "Resident memory of the stage's process."),
    "stage_beat_age_seconds": ("beat_age_s", "How long the main loop has stood still at its work."),
    "stage_heard_age_seconds": ("heard_age_s", "How long ago the stage was heard."),
    "stage_epoch": ("epoch", "The epoch that the stage is in."),
}


def metrics_text(status: RingStatus) -> str:
    """The status in Prometheus' text format, names beginning with `zpp:`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(status))
    return generate_latest(registry).decode()


class _Told(Collector):
    """One status, as prometheus_client wants to be given it."""

    def __init__(self, status: RingStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        places = (self._status.head, *self._status.stages)
        for name, (field, told) in _RING_COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, told, value=getattr(self._status, field))
        yield from _of_places(places)
        yield from _of_links([(_name(place), place.link) for place in places if place.link is not None])


def _of_places(places: tuple[StageStatus, ...]) -> Iterator[Metric]:
    for name, (field, told) in _STAGE_COUNTERS.items():
        counter = CounterMetricFamily(PREFIX + name, told, labels=["stage"])
        for place in places:
            counter.add_metric([_name(place)], getattr(place, field))
        yield counter
    for name, (field, told) in _STAGE_GAUGES.items():
        gauge = GaugeMetricFamily(PREFIX + name, told, labels=["stage"])
        for place in places:
            gauge.add_metric([_name(place)], getattr(place, field))
        yield gauge
    phases = GaugeMetricFamily(PREFIX + "stage_phase", "1 for the phase that it is in.", labels=["stage", "phase"])
    for place in places:
        phases.add_metric([_name(place), place.phase], 1)
    yield phases


def _of_links(links: list[tuple[str, LinkStatus]]) -> Iterator[Metric]:
    labels = ["stage", "peer"]
    for name, (field, told) in _LINK_COUNTERS.items():
        counter = CounterMetricFamily(PREFIX + name, told, labels=labels)
        for stage, link in links:
            counter.add_metric([stage, link.peer], getattr(link, field))
        yield counter
    reconnects = CounterMetricFamily(PREFIX + "link_reconnects", "Welcomes after the first.", labels=labels)
    queue = GaugeMetricFamily(PREFIX + "link_queue_messages", "Messages sent and not handed on yet.", labels=labels)
    states = GaugeMetricFamily(PREFIX + "link_state", "1 for the state that it is in.", labels=[*labels, "state"])
    trips = HistogramMetricFamily(PREFIX + "link_round_trip_seconds", "A word there and back.", labels=labels)
    for stage, link in links:
        reconnects.add_metric([stage, link.peer], max(link.sessions - 1, 0))
        queue.add_metric([stage, link.peer], link.queue)
        for state in _LINK_STATES:
            states.add_metric([stage, link.peer, state], int(state == link.state))
        trips.add_metric([stage, link.peer], buckets=_buckets(link), sum_value=link.rtt_sum_s)
    yield from (reconnects, queue, states, trips)


def _buckets(link: LinkStatus) -> list[tuple[str, float]]:
    """Upper bound and how many round trips lie below it, as a histogram wants them."""
    bounds = (*map(str, ROUND_TRIP_BOUNDS_S), "+Inf")
    return [(bound, float(sum(link.rtt_counts[: place + 1]))) for place, bound in enumerate(bounds)]


def _name(place: StageStatus) -> str:
    return "head" if place.stage == HEAD else str(place.stage)
