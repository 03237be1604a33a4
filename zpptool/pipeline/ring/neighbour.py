# SPDX-License-Identifier: Apache-2.0
"""Noticing that the process on the other side of a link has gone, whether one sends to it or listens to it.

A link by itself waits: the other side may only be late. Once the two have spoken, a connection that ends means that
the other process has ended or cannot be reached, and waiting for it is given up within `POLL_S`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zpptool.wire.deadline import Deadline
from zpptool.wire.link import LinkError, LinkTimeout, PullLink, PushLink, Sent
from zpptool.wire.messages import Buffer, Kind, place_name

POLL_S = 0.2
"""How long a wait goes on before it looks around."""


class PeerLost(LinkError):
    """The process on the other side of a link has gone."""


def check_sender(link: PullLink) -> None:
    """Ask whether the sender at the other end of `link`, who was heard before, is still there.

    Raises:
        PeerLost: it has gone, and nothing of what it sent is left to read.
    """
    if link.peers == 0 and not link.poll(0.0):
        raise _lost(link)


class Delivery:
    """Sends on one link, and gives up when the receiver, once there, has gone.

    Args:
        link: the link.
        over: asked while waiting; may raise to end the wait.
    """

    def __init__(self, link: PushLink, over: Callable[[], None]) -> None:
        self._link = link
        self._over = over
        self._delivered = False

    def send(
        self, kind: Kind, header: bytes, frames: Sequence[Buffer] = (), *, source: int, epoch: int = 0, timeout_s: float
    ) -> Sent:
        """As `PushLink.send`.

        Raises:
            PeerLost: the receiver was there and has gone.
            LinkTimeout: it did not take the message in time.
            ZppError: what `over` raised.
        """
        deadline = Deadline(timeout_s)
        while True:
            part_s = min(POLL_S, deadline.remaining_s())
            try:
                sent = self._link.send(kind, header, frames, source=source, epoch=epoch, timeout_s=part_s)
            except LinkTimeout:
                self._over()
                self.check_receiver()
                if not deadline.remaining_s():
                    raise self._link.timed_out(deadline, "take a message") from None
            else:
                self._delivered = True
                return sent

    def check_receiver(self) -> None:
        """Ask whether the receiver, if it has been sent anything, is still there, and alone.

        Raises:
            PeerLost: it has gone.
            LinkError: another one is connected too.
        """
        peers = self._link.peers
        if self._delivered and peers == 0:
            raise _lost(self._link)
        if peers > 1:
            raise self._link.fault(
                f"{peers} receivers are connected where {self._link.peer} alone should be",
                "One of them was given the wrong address, or the same place as another one.",
            )


def _lost(link: PullLink | PushLink) -> PeerLost:
    return PeerLost(
        f"{place_name(link.stage)} has lost {link.peer} at {link.endpoint}: it ended, or the way to it is cut",
        stage=link.stage,
        peer=link.peer,
        endpoint=link.endpoint,
    )
