# SPDX-License-Identifier: Apache-2.0
"""The status of rings as Prometheus metrics."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests.rings import ring, stage
from zpptool.admin.prometheus import metrics_text
from zpptool.ring.status import unheard
from zpptool.wire.link.counters import ROUND_TRIP_BOUNDS_S, LinkCounters


def test_every_link_and_stage_has_its_metrics() -> None:
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics_text({"one": ring(stage(1))}))
        for sample in family.samples
    }
    link = (("peer", "stage 2"), ("replica", "one"), ("stage", "1"))
    assert samples["zpp:link_sent_bytes_total", link] == 1000
    assert samples["zpp:link_received_messages_total", link] == 6
    assert samples["zpp:link_queue_messages", link] == 4
    assert samples["zpp:link_reconnects_total", link] == 2
    assert samples["zpp:link_refused_peers_total", link] == 2
    assert samples["zpp:link_wait_seconds_total", link] == 0.5
    assert samples["zpp:link_round_trip_seconds_count", link] == 6
    assert samples["zpp:link_round_trip_seconds_bucket", (("le", "0.001"), *link)] == 5
    assert samples["zpp:link_state", (*link, ("state", "connected"))] == 1
    assert samples["zpp:link_state", (*link, ("state", "lost"))] == 0
    assert samples["zpp:stage_steps_total", (("replica", "one"), ("stage", "1"))] == 5
    assert samples["zpp:stage_receive_seconds_total", (("replica", "one"), ("stage", "1"))] == 2.5
    assert samples["zpp:stage_compute_seconds_total", (("replica", "one"), ("stage", "1"))] == 4.5
    of_head = (("peer", "stage 0"), ("replica", "one"), ("stage", "head"))
    assert samples["zpp:link_sent_bytes_total", of_head] == 1000


def test_a_stage_without_a_report_has_no_link() -> None:
    text = metrics_text({"one": ring(unheard(0, 0, 1.0))})
    assert 'zpp:stage_phase{phase="unheard",replica="one",stage="0"} 1.0' in text


@given(st.lists(st.floats(0, 20), max_size=50))
def test_round_trips_are_counted_in_their_buckets(trips: list[float]) -> None:
    counters = LinkCounters()
    for trip in trips:
        counters.round_trip(trip)
    assert sum(counters.rtt_counts) == len(trips)
    for place, bound in enumerate(ROUND_TRIP_BOUNDS_S):
        assert sum(counters.rtt_counts[: place + 1]) == sum(trip <= bound for trip in trips)
