# SPDX-License-Identifier: Apache-2.0
"""What a receiving link knows of its session: whether it is welcome, which message is due, and what ended it."""

from __future__ import annotations

from zpptool.wire.link_errors import LinkRefused
from zpptool.wire.protocol.flow_control import AcknowledgementSchedule, Window
from zpptool.wire.protocol.sequence import SequenceCheck


class ReceiverSession:
    """The session of a receiver, from connection to connection.

    Attributes:
        check: the sequence check of the session that the sender has welcomed this end to; None before it has.
        acknowledgements: which messages of the session the sender still needs an acknowledgement for.
        disconnected: whether the connection of the session has ended.
        refusal: the error, when one side has refused the other.
        refusal_reason: why, kept while this end tries again; empty once the sender has welcomed it.
        hold: why the sender lets this end wait; None when it does not.
    """

    __slots__ = ("acknowledgements", "check", "disconnected", "hold", "refusal", "refusal_reason")

    def __init__(self) -> None:
        self.check: SequenceCheck | None = None
        self.acknowledgements = AcknowledgementSchedule(Window())
        self.disconnected = False
        self.refusal: LinkRefused | None = None
        self.refusal_reason = ""
        self.hold: str | None = None

    @property
    def state(self) -> str:
        """`waiting` to be welcomed, `connected`, `lost` or `refused`."""
        if self.refusal is not None:
            return "refused"
        if self.check is None:
            return "waiting"
        return "lost" if self.disconnected else "connected"

    @property
    def due(self) -> int:
        """The number of the next message, which is also how many were received."""
        return self.check.due if self.check else 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come: one side was refused, or a sender that has sent messages is gone."""
        return self.refusal is not None or (self.disconnected and self.due > 0)

    def begin(self, number: int, window: Window) -> None:
        """The sender welcomes this end to the session of that number."""
        self.disconnected = False
        self.check = SequenceCheck(number)
        self.acknowledgements = AcknowledgementSchedule(window)
        self.refusal_reason = ""
        self.hold = None

    def on_connected(self) -> None:
        """A connection has begun: a session without messages may be replaced, any other one is lost."""
        if self.check and not self.check.due:
            self.check = None
        self.disconnected = self.check is not None

    def on_disconnected(self) -> None:
        """The connection has ended."""
        self.disconnected = True
        self.hold = None
