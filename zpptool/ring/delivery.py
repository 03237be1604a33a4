# SPDX-License-Identifier: Apache-2.0
"""Sending to the next place of the ring, with a check between short waits whether the run is over.

A link notices by itself that the process at its other end has ended. It cannot know that the run is over, after which
there is no reason to wait for that process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zpptool.deadline import Deadline
from zpptool.wire.link import LinkSender, LinkTimeout, Sent
from zpptool.wire.message.framing import Buffer, Kind

POLL_S = 0.2
"""The longest wait, in seconds, before checking whether the run is over."""


class Delivery:
    """Sends on one link until the run is over.

    Args:
        link: the link.
        raise_if_over: called between waits; raises to end them.
    """

    def __init__(self, link: LinkSender, raise_if_over: Callable[[], None]) -> None:
        self._link = link
        self._raise_if_over = raise_if_over

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
        """Send one message; see `LinkSender.send` for the arguments.

        Raises:
            LinkTimeout: the peer did not accept the message in time.
            LinkError: what `LinkSender.send` raises.
            ZppError: what `raise_if_over` raised.
        """
        deadline = Deadline(timeout_s)
        while True:
            part_s = min(POLL_S, deadline.remaining_s())
            try:
                return self._link.send(
                    kind, header, frames, source=source, epoch=epoch, run_id=run_id, timeout_s=part_s
                )
            except LinkTimeout:
                self._raise_if_over()
                if not deadline.remaining_s():
                    raise self._link.faults.timed_out(deadline, f"take message {self._link.sequence + 1}") from None
