# SPDX-License-Identifier: Apache-2.0
"""Which pipeline gets a request, as pure functions: among the ready ones, the one at which this request has failed
least often, then the one with the fewest requests in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BackendState:
    """The state of a pipeline behind the gateway.

    Attributes:
        url: the base URL of its API; empty while it has none.
        ready: whether it accepts requests.
        phase: what it is doing, for people.
        generation: changes at each start, so that a request that failed in one generation may be tried in the next.
        hopeless: whether it will never be ready again.
        why: why it is not ready; None where that is unknown.
    """

    url: str = ""
    ready: bool = False
    phase: str = "new"
    generation: int = 0
    hopeless: bool = False
    why: str | None = None


@dataclass
class Upstream:
    """A pipeline behind the gateway, with the gateway's counts of its requests.

    Attributes:
        name: shown to people, and the `replica` label of metrics.
        state: the most recent one.
        in_flight: requests that it is answering.
        taken: requests that were sent to it since the start.
        last_taken: the sequence number, over all pipelines, of the last request that was sent to it.
        suspect_until: it gets no requests until this time on the monotonic clock, because one has just failed there.
    """

    name: str
    state: BackendState = field(default_factory=BackendState)
    in_flight: int = 0
    taken: int = 0
    last_taken: int = 0
    suspect_until: float = 0.0


Failures = Mapping[tuple[str, int], int]
"""How often one request has failed, by pipeline name and generation."""


def choose(upstreams: Sequence[Upstream], failures: Failures, now: float) -> Upstream | None:
    """The pipeline that a request is sent to; None where none can take it now.

    Args:
        upstreams: all pipelines.
        failures: of this request.
        now: on the clock of `suspect_until`.
    """
    available = [each for each in upstreams if each.state.ready and each.suspect_until <= now]
    if not available:
        return None
    return min(
        available,
        key=lambda each: (failures.get((each.name, each.state.generation), 0), each.in_flight, each.last_taken),
    )


def combined_phase(upstreams: Sequence[Upstream]) -> str:
    """What all pipelines are doing, for people: `ready` as soon as one is."""
    if any(each.state.ready for each in upstreams):
        return "ready"
    if len(upstreams) == 1:
        return upstreams[0].state.phase
    return "; ".join(f"{each.name}: {each.state.phase}" for each in upstreams)


def not_ready_reason(upstreams: Sequence[Upstream]) -> str:
    """Why no pipeline is ready, for people."""
    reasons = [each.state.why for each in upstreams if each.state.why]
    return f"{combined_phase(upstreams)} ({'; '.join(reasons)})" if reasons else combined_phase(upstreams)
