# SPDX-License-Identifier: Apache-2.0
"""Which pipeline gets a request, as pure functions: among the ready ones, the one at which this request has failed
least often, then the one that has the beginning of its prompt in its cache, unless that one is too busy, then the one
with the fewest requests in flight."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SUSPECT_S = 0.5
"""How long a pipeline gets no requests after one has failed there; by then its supervisor has noticed a loss."""
LONGEST_EJECTION_S = 30.0
ERRORS_TO_EJECT = 5
"""So many answers in a row with a status of 500 or above make a pipeline an outlier, although it is healthy."""
MOST_OF_MEAN = 1.25
"""How much more than the mean load a pipeline may have for the sake of its prefix cache."""


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
        failed_in_a_row: how often it was suspected since it answered last.
        errors_in_a_row: how many of its last answers had a status of 500 or above.
    """

    name: str
    state: BackendState = field(default_factory=BackendState)
    in_flight: int = 0
    taken: int = 0
    last_taken: int = 0
    suspect_until: float = 0.0
    failed_in_a_row: int = 0
    errors_in_a_row: int = 0


Failures = Mapping[tuple[str, int], int]
"""How often one request has failed, by pipeline name and generation."""


def choose(upstreams: Sequence[Upstream], failures: Failures, now: float, prefix: bytes = b"") -> Upstream | None:
    """The pipeline that a request is sent to; None where none can take it now.

    Args:
        upstreams: all pipelines.
        failures: of this request.
        now: on the clock of `suspect_until`.
        prefix: a key of the beginning of its prompt; empty to look at the load alone.
    """
    available = [each for each in upstreams if each.state.ready and each.suspect_until <= now]
    if not available:
        return None
    fewest = min(_failures_at(each, failures) for each in available)
    candidates = [each for each in available if _failures_at(each, failures) == fewest]
    if prefix:
        favourite = max(candidates, key=lambda each: _affinity(prefix, each))
        if favourite.in_flight < busy_at(candidates):
            return favourite
    return min(candidates, key=lambda each: (each.in_flight, each.last_taken))


def busy_at(upstreams: Sequence[Upstream]) -> int:
    """Return the number of requests in flight from which on a pipeline gets no more for the sake of their prefixes:
    `MOST_OF_MEAN` times what each would have with one request more."""
    return math.ceil(MOST_OF_MEAN * (sum(each.in_flight for each in upstreams) + 1) / len(upstreams))


def _affinity(prefix: bytes, upstream: Upstream) -> bytes:
    """Rendezvous hashing: a prefix keeps its pipeline when another one comes or goes."""
    return hashlib.blake2b(prefix + upstream.name.encode(), digest_size=8).digest()


def _failures_at(upstream: Upstream, failures: Failures) -> int:
    return failures.get((upstream.name, upstream.state.generation), 0)


def ejection_s(failures_in_a_row: int, others_ready: bool) -> float:
    """Return how long a pipeline gets no requests after so many failures in a row, in seconds.

    The time doubles up to `LONGEST_EJECTION_S`; then it is tried again. A pipeline without others gets the shortest.
    """
    if not others_ready:
        return SUSPECT_S
    return min(SUSPECT_S * 2.0 ** min(failures_in_a_row - 1, 16), LONGEST_EJECTION_S)


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
