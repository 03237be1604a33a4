# SPDX-License-Identifier: Apache-2.0
"""The pipelines behind the front, and the requests that wait for one. Used from the event loop's thread only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from zpptool.serve.http_errors import not_whole
from zpptool.serve.load_balancing import BackendState, Failures, Upstream, choose, phase_of_all, why_not

SUSPECT_S = 0.5
"""How long a pipeline that has failed a request is passed over; by then it is known whether it is whole."""
EMPTY_POLL_S = 0.02


class Pool:
    """All pipelines behind one front.

    Attributes:
        upstreams: the pipelines.
        waiting: how many requests wait for one to be ready.

    Args:
        names: of the pipelines.
        deadline_s: how long a request waits for one to be ready.
    """

    def __init__(self, names: Sequence[str], deadline_s: float) -> None:
        self.upstreams = [Upstream(name) for name in names]
        self.waiting = 0
        self.deadline_s = deadline_s
        self._draining = False
        self._given = 0
        self._changed = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that are being answered, or wait."""
        return self.waiting + sum(each.in_flight for each in self.upstreams)

    @property
    def is_ready(self) -> bool:
        """Whether a request that comes now is taken at once."""
        return not self._draining and any(each.standing.ready for each in self.upstreams)

    @property
    def phase(self) -> str:
        """What the pipelines are doing together, in words."""
        return "draining" if self._draining else phase_of_all(self.upstreams)

    def update(self, number: int, standing: BackendState) -> None:
        """A pipeline's standing has changed."""
        if self.upstreams[number].standing != standing:
            self.upstreams[number].standing = standing
            self._wake()

    def drain(self) -> None:
        """Take no more requests."""
        self._draining = True
        self._wake()

    def suspect(self, upstream: Upstream) -> None:
        """A pipeline has failed a request: pass it over until it is known whether it is whole."""
        upstream.suspect_until = time.monotonic() + SUSPECT_S

    async def take(self, failures: Failures, deadline: float) -> Upstream:
        """A pipeline that can take a request, as soon as there is one.

        Args:
            failures: where this request has failed already.
            deadline: on the monotonic clock.

        Raises:
            Refusal: (503) there is none in time, or never will be, or the server is stopping.
        """
        while True:
            if self._draining:
                raise not_whole("this server is stopping and takes no new requests")
            chosen = choose(self.upstreams, failures, time.monotonic())
            if chosen is not None:
                return chosen
            if all(each.standing.hopeless for each in self.upstreams):
                raise not_whole(f"no pipeline will answer any more: {why_not(self.upstreams)}")
            if time.monotonic() >= deadline:
                raise not_whole(
                    f"no pipeline has become ready in {self.deadline_s:g} s: it is {why_not(self.upstreams)}"
                )
            await self._wait(deadline)

    @contextmanager
    def answering(self, upstream: Upstream) -> Iterator[None]:
        """While a pipeline answers a request."""
        self._given += 1
        upstream.last_taken = self._given
        upstream.taken += 1
        upstream.in_flight += 1
        try:
            yield
        finally:
            upstream.in_flight -= 1

    async def empty(self) -> None:
        """Return when no request is under way."""
        while self.in_flight:
            await asyncio.sleep(EMPTY_POLL_S)

    async def _wait(self, deadline: float) -> None:
        """Until something changes, a suspect is one no longer, or the deadline."""
        now = time.monotonic()
        ends = [each.suspect_until for each in self.upstreams if each.suspect_until > now]
        changed = self._changed
        self.waiting += 1
        try:
            await asyncio.wait_for(changed.wait(), max(min([deadline, *ends]) - now, 0.001))
        except TimeoutError:
            return
        finally:
            self.waiting -= 1

    def _wake(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()
