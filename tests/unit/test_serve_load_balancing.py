# SPDX-License-Identifier: Apache-2.0
"""Which pipeline gets a request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zpptool.serve.load_balancing import BackendState, Upstream, busy_at, choose, combined_phase, ejection_s

PREFIXES = [bytes([number]) for number in range(64)]


def upstream(name: str, *, ready: bool = True, in_flight: int = 0, last: int = 0, suspect: float = 0.0) -> Upstream:
    state = BackendState("http://x", ready, generation=1)
    return Upstream(name, state, in_flight, last_taken=last, suspect_until=suspect)


def test_the_fewest_requests_in_flight_win_and_then_the_longest_idle() -> None:
    assert choose([upstream("a", in_flight=2), upstream("b", in_flight=1)], {}, 0.0).name == "b"
    assert choose([upstream("a", last=5), upstream("b", last=4)], {}, 0.0).name == "b"


def test_a_pipeline_where_the_request_has_failed_comes_last() -> None:
    both = [upstream("a"), upstream("b", in_flight=9)]
    assert choose(both, {("a", 1): 1}, 0.0).name == "b"
    assert choose(both, {("a", 0): 1}, 0.0).name == "a", "that was in another generation"


def test_a_prefix_keeps_its_pipeline_as_long_as_that_is_not_too_busy() -> None:
    names = ["a", "b", "c"]
    chosen = {prefix: choose([upstream(name) for name in names], {}, 0.0, prefix).name for prefix in PREFIXES}
    assert set(chosen.values()) == set(names)
    for prefix, name in chosen.items():
        loaded = [upstream(each, in_flight=4 if each == name else 1) for each in names]
        assert choose(loaded, {}, 0.0, prefix).name != name, "its load is past 1.25 times the mean"
        even = [upstream(each, in_flight=8) for each in names]
        assert choose(even, {}, 0.0, prefix).name == name
        failed = choose([upstream(each) for each in names], {(name, 1): 1}, 0.0, prefix)
        assert failed.name != name
        rest = choose([upstream(each) for each in names if each != "c"], {}, 0.0, prefix)
        assert name == "c" or rest.name == name, "a pipeline that goes takes only its own prefixes with it"


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.binary(min_size=1, max_size=8))
def test_the_load_stays_within_its_bound(loads: list[int], prefix: bytes) -> None:
    upstreams = [upstream(str(number), in_flight=load) for number, load in enumerate(loads)]
    chosen = choose(upstreams, {}, 0.0, prefix)
    assert chosen.in_flight < busy_at(upstreams) or chosen.in_flight == min(loads)


def test_an_outlier_is_ejected_for_longer_each_time_unless_it_is_alone() -> None:
    assert [ejection_s(count, True) for count in (1, 2, 3, 100)] == [0.5, 1.0, 2.0, 30.0]
    assert ejection_s(100, False) == 0.5


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.floats(0, 2)), max_size=5),
    st.floats(0, 2),
)
def test_only_a_ready_pipeline_that_is_not_suspect_is_chosen(states: list[tuple[bool, int, float]], now: float) -> None:
    upstreams = [
        upstream(str(number), ready=ready, in_flight=load, suspect=until)
        for number, (ready, load, until) in enumerate(states)
    ]
    available = [each for each in upstreams if each.state.ready and each.suspect_until <= now]
    chosen = choose(upstreams, {}, now)
    assert (chosen is None) == (not available)
    if chosen is not None:
        assert chosen in available
        assert chosen.in_flight == min(each.in_flight for each in available)


def test_the_phase_of_several_pipelines_names_each() -> None:
    assert combined_phase([upstream("a", ready=False), upstream("b")]) == "ready"
    assert combined_phase([upstream("a", ready=False), upstream("b", ready=False)]) == "a: new; b: new"
