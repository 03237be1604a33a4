# SPDX-License-Identifier: Apache-2.0
"""The three ways a wire fails: bytes that cannot be right, a link that broke its promise, a wait that ended.

Each carries who noticed (`stage`), who is on the other side (`peer`) and where (`endpoint`), so that a supervisor
can act without reading the sentence. All leave with exit code `STAGE`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zpptool.errors import ExitCode, ZppError

if TYPE_CHECKING:
    from zpptool.wire.messages import Message

HEAD = -1
"""The head's place where a stage index is expected: the source of its messages, the owner of its links."""


def place_name(place: int) -> str:
    """How a person calls a place on the ring: `head` or `stage 3`."""
    return "head" if place == HEAD else f"stage {place}"


class WireFault(ZppError):
    """Anything that goes wrong between two places.

    Attributes:
        stage: index of the place that noticed (`HEAD` for the head), None where no link is involved.
        peer: the other side by name, for example `stage 1`.
        endpoint: the address between them.
    """

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        stage: int | None = None,
        peer: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        super().__init__(message, hint, ExitCode.STAGE)
        self.stage = stage
        self.peer = peer
        self.endpoint = endpoint


class WireError(WireFault):
    """A message that cannot be right: refused before anything was allocated for it."""

    def at(self, *, stage: int, peer: str, endpoint: str) -> WireError:
        """The same fault, told with the place where it was met."""
        told = f"{place_name(stage).capitalize()} refused a message from {peer} ({endpoint}): {self.message}"
        return WireError(told, self.hint, stage=stage, peer=peer, endpoint=endpoint)


class LinkError(WireFault):
    """A link that cannot do what it promised, or was used against its rules."""


class LinkTimeout(LinkError):
    """A deadline passed; the message says what was awaited and whether the peer was connected at all."""


class SequenceError(LinkError):
    """Messages were lost, repeated, or came from a second sender.

    Attributes:
        expected: the sequence number that was due.
        got: the one that came.
        received: the message that showed it; the caller decides whether it is still of use. The link goes on after
            it, so one loss is reported once.
    """

    def __init__(
        self, message: str, *, stage: int, peer: str, endpoint: str, expected: int, got: int, received: Message
    ) -> None:
        hint = "A PUSH deals its messages out among all who connect: is a second process connected to that endpoint?"
        super().__init__(message, hint, stage=stage, peer=peer, endpoint=endpoint)
        self.expected = expected
        self.got = got
        self.received = received
