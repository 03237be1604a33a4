# SPDX-License-Identifier: Apache-2.0
"""Messages that a stage has to relay and that the next place has no room for yet."""

from __future__ import annotations

from collections import deque

from zpptool.ring.stage.losses import RunEpoch
from zpptool.wire.link import LinkSender, LinkTimeout, PeerLost, StaleEpoch
from zpptool.wire.message.framing import Message

RELAY_S = 0.005
"""How long, in seconds, the receiving thread waits for room at the next place before a message stays in the backlog."""


class Backlog:
    """Relays messages in order, without waiting longer than `RELAY_S` for the next place.

    Args:
        downstream: the link to the next place.
    """

    def __init__(self, downstream: LinkSender) -> None:
        self._downstream = downstream
        self._waiting: deque[tuple[RunEpoch, int, Message]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def relay(self, message: Message, *, epoch: RunEpoch, source: int) -> None:
        """Pass a message on, after those that wait.

        Args:
            message: the message.
            epoch: that it was received in; if it ends before the message is sent, the message is dropped.
            source: the place that it comes from.

        Raises:
            PeerLost: the next place was lost; the backlog is empty then.
        """
        self._waiting.append((epoch, source, message))
        self.flush()

    def flush(self) -> None:
        """Pass on what waits, as far as there is room.

        Raises:
            PeerLost: the next place was lost; the backlog is empty then.
        """
        while self._waiting:
            epoch, source, message = self._waiting[0]
            try:
                self._downstream.send(
                    message.kind, message.header, message.frames,
                    source=source, epoch=epoch.epoch, run_id=epoch.run_id, timeout_s=RELAY_S,
                )  # fmt: skip
            except LinkTimeout:
                return
            except StaleEpoch:
                pass
            except PeerLost:
                self._waiting.clear()
                raise
            self._waiting.popleft()
