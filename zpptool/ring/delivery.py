# SPDX-License-Identifier: Apache-2.0
"""Sending to the next place of the ring, in pieces of a wait that look around.

A link notices by itself that the process at its other end has gone; what it cannot know is that the run is over, and
that there is nothing to wait for any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zpptool.deadline import Deadline
from zpptool.wire.link import LinkSender, LinkTimeout, Sent
from zpptool.wire.message.framing import Buffer, Kind

POLL_S = 0.2
"""How long a wait goes on before it looks around."""


class Delivery:
    """Sends on one link, and gives up when the run is over.

    Args:
        link: the link.
        over: asked while waiting; may raise to end the wait.
    """

    def __init__(self, link: LinkSender, over: Callable[[], None]) -> None:
        self._link = link
        self._over = over

    def send(
        self,
        kind: Kind,
        header: bytes,
        frames: Sequence[Buffer] = (),
        *,
        source: int,
        epoch: int | None = None,
        run_id: str | None = None,
        timeout_s: float,
    ) -> Sent:
        """As `LinkSender.send`.

        Raises:
            LinkTimeout: it did not take the message in time.
            LinkError: what `LinkSender.send` raises.
            ZppError: what `over` raised.
        """
        deadline = Deadline(timeout_s)
        while True:
            part_s = min(POLL_S, deadline.remaining_s())
            try:
                return self._link.send(
                    kind, header, frames, source=source, epoch=epoch, run_id=run_id, timeout_s=part_s
                )
            except LinkTimeout:
                self._over()
                if not deadline.remaining_s():
                    raise self._link.timed_out(deadline, f"take message {self._link.sequence + 1}") from None
