# SPDX-License-Identifier: Apache-2.0
"""Which pipeline gets a request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zpptool.serve.load_balancing import BackendState, Upstream, choose, combined_phase


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
