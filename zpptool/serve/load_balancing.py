# SPDX-License-Identifier: Apache-2.0
"""Which pipeline a request goes to, as pure functions: to one that is ready, has failed it least, and does least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BackendState:
    """A pipeline as the front knows it.

    Attributes:
        url: the base of its API; empty while it has none.
        ready: whether it takes requests.
        phase: what it is doing, in words.
        generation: changes whenever it was started again: what failed in one generation may work in the next.
        hopeless: whether it will never be ready again.
        why: what keeps it from being ready; None for nothing known.
    """

    url: str = ""
    ready: bool = False
    phase: str = "new"
    generation: int = 0
    hopeless: bool = False
    why: str | None = None


@dataclass
class Upstream:
    """A pipeline behind the front, and what it has to do with requests.

    Attributes:
        name: what people call it.
        standing: as last heard.
        in_flight: requests that it is answering.
        taken: requests that it was ever given.
        last_taken: the number, among all requests, of the last one that it was given.
        suspect_until: the time until which it is passed over, because it has just failed somebody.
    """

    name: str
    standing: BackendState = field(default_factory=BackendState)
    in_flight: int = 0
    taken: int = 0
    last_taken: int = 0
    suspect_until: float = 0.0


Failures = Mapping[tuple[str, int], int]
"""How often one request has failed at a pipeline's generation."""


def choose(upstreams: Sequence[Upstream], failures: Failures, now: float) -> Upstream | None:
    """The pipeline that a request goes to; None where none can take it now.

    Args:
        upstreams: all there are.
        failures: of this request.
        now: on the clock of `suspect_until`.
    """
    able = [each for each in upstreams if each.standing.ready and each.suspect_until <= now]
    if not able:
        return None
    return min(
        able, key=lambda each: (failures.get((each.name, each.standing.generation), 0), each.in_flight, each.last_taken)
    )


def phase_of_all(upstreams: Sequence[Upstream]) -> str:
    """What they are doing together, in words: `ready` as soon as one is."""
    if any(each.standing.ready for each in upstreams):
        return "ready"
    if len(upstreams) == 1:
        return upstreams[0].standing.phase
    return "; ".join(f"{each.name}: {each.standing.phase}" for each in upstreams)


def why_not(upstreams: Sequence[Upstream]) -> str:
    """Why none is ready, in words."""
    reasons = [each.standing.why for each in upstreams if each.standing.why]
    return f"{phase_of_all(upstreams)} ({'; '.join(reasons)})" if reasons else phase_of_all(upstreams)
