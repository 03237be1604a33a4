# SPDX-License-Identifier: Apache-2.0
"""The status of rings as Prometheus metrics: a pure function, so any holder of a status can serve them.

Every sample has the labels `replica` (the name of the ring's pipeline), `stage` (a number, or `head`) and, if it is
about a link, `peer` (the place at its other end).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from zpptool.places import HEAD
from zpptool.ring.status import LinkStatus, RingStatus, StageStatus
from zpptool.wire.link.counters import ROUND_TRIP_BOUNDS_S

PREFIX = "zpp:"
_LINK_STATES = ("waiting", "connected", "lost", "refused")

_LINK_COUNTERS = {
    "link_sent_bytes": ("bytes_sent", "Bytes of the messages sent."),
    "link_received_bytes": ("bytes_received", "Bytes of the messages that the receiver has reported as taken."),
    "link_sent_messages": ("messages_sent", "Messages sent."),
    "link_received_messages": ("messages_received", "Messages that the receiver has reported as taken."),
    "link_wait_seconds": ("wait_s", "Time that senders have waited for the peer, or for room in its window."),
    "link_send_seconds": ("send_s", "Time that handing messages to the socket has taken."),
    "link_refused_peers": ("refused", "Handshakes and connections that were refused."),
}
_STAGE_COUNTERS = {
    "stage_steps": ("steps", "Calls that the stage has completed."),
    "stage_receive_seconds": ("receive_s", "Time that the stage has waited for the tensors of the one before."),
    "stage_compute_seconds": ("compute_s", "Time that the stage's main loop has computed."),
    "stage_send_seconds": ("send_s", "Time that the stage's main loop has waited to hand over tensors."),
    "stage_idle_seconds": ("idle_s", "Time that the stage has waited for the next step, since its first."),
}
_RING_COUNTERS = {
    "recoveries": ("recoveries", "How often the ring became whole again after a loss."),
    "planned_changes": ("planned", "How often it became whole again after a planned change."),
    "recovery_stall_seconds": ("stall_s", "Time that the ring was not whole because of losses and planned changes."),
    "recovery_recomputed_tokens": ("recomputed_tokens", "Tokens computed again because of losses and planned changes."),
}
_STAGE_GAUGES = {
    "stage_memory_bytes": ("memory_bytes", "Resident memory of the stage's process."),
    "stage_beat_age_seconds": ("beat_age_s", "Seconds since the main loop's last progress while it works."),
    "stage_heard_age_seconds": ("heard_age_s", "The age of the stage's last report."),
    "stage_epoch": ("epoch", "The highest epoch that the stage knows."),
}


def metrics_text(rings: Mapping[str, RingStatus]) -> str:
    """The status of rings, by the names of their pipelines, in Prometheus' text format; names begin with `zpp:`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StatusCollector(rings))
    return generate_latest(registry).decode()


class _StatusCollector(Collector):
    """Statuses as metric families of prometheus_client."""

    def __init__(self, rings: Mapping[str, RingStatus]) -> None:
        self._rings = rings

    def collect(self) -> Iterator[Metric]:
        for name, (field, help_text) in _RING_COUNTERS.items():
            counter = CounterMetricFamily(PREFIX + name, help_text, labels=["replica"])
            for replica, ring in self._rings.items():
                counter.add_metric([replica], getattr(ring, field))
            yield counter
        places = [(name, place) for name, ring in self._rings.items() for place in (ring.head, *ring.stages)]
        yield from _of_places([([name, _name(place)], place) for name, place in places])
        links = [([name, _name(place)], place.link) for name, place in places]
        yield from _of_links([([*own, link.peer], link) for own, link in links if link is not None])


def _of_places(places: list[tuple[list[str], StageStatus]]) -> Iterator[Metric]:
    labels = ["replica", "stage"]
    for name, (field, help_text) in _STAGE_COUNTERS.items():
        counter = CounterMetricFamily(PREFIX + name, help_text, labels=labels)
        for own, place in places:
            counter.add_metric(own, getattr(place, field))
        yield counter
    for name, (field, help_text) in _STAGE_GAUGES.items():
        gauge = GaugeMetricFamily(PREFIX + name, help_text, labels=labels)
        for own, place in places:
            gauge.add_metric(own, getattr(place, field))
        yield gauge
    busy = GaugeMetricFamily(
        PREFIX + "stage_busy_ratio", "Share of the last ten seconds that the stage has computed.", labels=labels
    )
    for own, place in places:
        if place.busy is not None:
            busy.add_metric(own, place.busy)
    yield busy
    phases = GaugeMetricFamily(PREFIX + "stage_phase", "1 for the present phase.", labels=[*labels, "phase"])
    for own, place in places:
        phases.add_metric([*own, place.phase], 1)
    yield phases


def _of_links(links: list[tuple[list[str], LinkStatus]]) -> Iterator[Metric]:
    labels = ["replica", "stage", "peer"]
    for name, (field, help_text) in _LINK_COUNTERS.items():
        counter = CounterMetricFamily(PREFIX + name, help_text, labels=labels)
        for own, link in links:
            counter.add_metric(own, getattr(link, field))
        yield counter
    reconnects = CounterMetricFamily(PREFIX + "link_reconnects", "Accepted handshakes after the first.", labels=labels)
    queue = GaugeMetricFamily(
        PREFIX + "link_queue_messages", "Messages sent and not reported as taken yet.", labels=labels
    )
    states = GaugeMetricFamily(PREFIX + "link_state", "1 for the present state of the link.", labels=[*labels, "state"])
    trips = HistogramMetricFamily(PREFIX + "link_round_trip_seconds", "Round trip times.", labels=labels)
    for own, link in links:
        reconnects.add_metric(own, max(link.sessions - 1, 0))
        queue.add_metric(own, link.queue)
        for state in _LINK_STATES:
            states.add_metric([*own, state], int(state == link.state))
        trips.add_metric(own, buckets=_buckets(link), sum_value=link.rtt_sum_s)
    yield from (reconnects, queue, states, trips)


def _buckets(link: LinkStatus) -> list[tuple[str, float]]:
    """The buckets of a histogram: upper bounds in seconds, with the cumulated counts of round trips."""
    bounds = (*map(str, ROUND_TRIP_BOUNDS_S), "+Inf")
    return [(bound, float(sum(link.rtt_counts[: place + 1]))) for place, bound in enumerate(bounds)]


def _name(place: StageStatus) -> str:
    return "head" if place.stage == HEAD else str(place.stage)
