# SPDX-License-Identifier: Apache-2.0
"""The pipelines behind the gateway, and the requests that wait for one. Used on the event loop's thread only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from zpptool.serve.http_errors import not_ready
from zpptool.serve.load_balancing import (
    ERRORS_TO_EJECT,
    BackendState,
    Failures,
    Upstream,
    choose,
    combined_phase,
    ejection_s,
    not_ready_reason,
)

IDLE_POLL_S = 0.02
SERVER_ERRORS = 500
"""The lowest status with which a server says that it has failed."""


class Pool:
    """All pipelines behind one gateway.

    Attributes:
        upstreams: the pipelines.
        waiting: how many requests wait for a pipeline to become ready.
        deadline_s: how long a request may wait, in seconds.

    Args:
        names: of the pipelines.
        deadline_s: how long a request may wait for a pipeline to become ready, in seconds.
    """

    def __init__(self, names: Sequence[str], deadline_s: float) -> None:
        self.upstreams = [Upstream(name) for name in names]
        self.waiting = 0
        self.deadline_s = deadline_s
        self._draining = False
        self._requests_sent = 0
        self._changed = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that are being answered or wait for a pipeline."""
        return self.waiting + sum(each.in_flight for each in self.upstreams)

    @property
    def is_ready(self) -> bool:
        """Whether a new request would be sent to a pipeline at once."""
        return not self._draining and any(each.state.ready for each in self.upstreams)

    @property
    def phase(self) -> str:
        """What all pipelines are doing, for people."""
        return "draining" if self._draining else combined_phase(self.upstreams)

    def update(self, number: int, state: BackendState) -> None:
        """Set a pipeline's state, and wake waiting requests if it has changed."""
        if self.upstreams[number].state != state:
            self.upstreams[number].state = state
            self._wake()

    def drain(self) -> None:
        """Accept no more requests."""
        self._draining = True
        self._wake()

    def suspect(self, upstream: Upstream) -> None:
        """Send no requests to a pipeline for a while, because one has failed there: longer each time in a row, where
        others are ready. Failures of requests that were under way together count once."""
        now = time.monotonic()
        if upstream.suspect_until > now:
            return
        upstream.failed_in_a_row += 1
        others = any(each.state.ready for each in self.upstreams if each is not upstream)
        upstream.suspect_until = now + ejection_s(upstream.failed_in_a_row, others)

    def answered(self, upstream: Upstream, status: int) -> None:
        """Note a pipeline's answer. One that only answers with errors is an outlier, and gets no requests for a while
        if another pipeline can take them."""
        if status < SERVER_ERRORS:
            upstream.failed_in_a_row = upstream.errors_in_a_row = 0
            return
        upstream.errors_in_a_row += 1
        now = time.monotonic()
        others = [each for each in self.upstreams if each is not upstream]
        if upstream.errors_in_a_row >= ERRORS_TO_EJECT and any(
            each.state.ready and each.suspect_until <= now for each in others
        ):
            self.suspect(upstream)

    async def take(self, failures: Failures, deadline: float, prefix: bytes = b"") -> Upstream:
        """Wait for a pipeline that can take a request.

        Args:
            failures: how often this request has failed, and where.
            deadline: on the monotonic clock.
            prefix: see `choose`.

        Raises:
            Refusal: (503) none becomes ready in time or ever will, or the server is stopping.
        """
        while True:
            if self._draining:
                raise not_ready("this server is stopping and takes no new requests")
            chosen = choose(self.upstreams, failures, time.monotonic(), prefix)
            if chosen is not None:
                return chosen
            if all(each.state.hopeless for each in self.upstreams):
                raise not_ready(f"no pipeline will answer any more: {not_ready_reason(self.upstreams)}")
            if time.monotonic() >= deadline:
                raise not_ready(
                    f"no pipeline has become ready in {self.deadline_s:g} s: it is {not_ready_reason(self.upstreams)}"
                )
            await self._wait(deadline)

    @contextmanager
    def answering(self, upstream: Upstream) -> Iterator[None]:
        """Count a request as in flight at a pipeline for the duration of the block."""
        self._requests_sent += 1
        upstream.last_taken = self._requests_sent
        upstream.taken += 1
        upstream.in_flight += 1
        try:
            yield
        finally:
            upstream.in_flight -= 1

    async def wait_until_idle(self) -> None:
        """Return once no request is in flight."""
        while self.in_flight:
            await asyncio.sleep(IDLE_POLL_S)

    async def _wait(self, deadline: float) -> None:
        """Wait until a pipeline's state changes, a suspect pipeline may be used again, or the deadline passes."""
        now = time.monotonic()
        suspicions_end = [each.suspect_until for each in self.upstreams if each.suspect_until > now]
        changed = self._changed
        self.waiting += 1
        try:
            await asyncio.wait_for(changed.wait(), max(min([deadline, *suspicions_end]) - now, 0.001))
        except TimeoutError:
            return
        finally:
            self.waiting -= 1

    def _wake(self) -> None:
        """Have every waiting request choose again."""
        self._changed.set()
        self._changed = asyncio.Event()
