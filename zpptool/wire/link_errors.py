# SPDX-License-Identifier: Apache-2.0
"""The errors of a link: malformed bytes, a broken guarantee, a wait that reached its deadline.

Each carries who noticed (`stage`), the other side (`peer`), the address (`endpoint`), and the state of the link at that
moment (`epoch`, `sequence`, `state`), so that a supervisor can act on it without parsing the message. All of them exit
with `STAGE`, except a peer that was started with another plan, which exits with `INVALID`.
"""

from __future__ import annotations

from typing import TypedDict

from zpptool.errors import ExitCode, ZppError


class LinkFacts(TypedDict, total=False):
    """The attributes that every `WireFault` takes as keyword arguments."""

    stage: int | None
    peer: str | None
    endpoint: str | None
    epoch: int | None
    sequence: int | None
    state: str | None


class WireFault(ZppError):
    """Any failure between two places of the ring.

    Attributes:
        stage: index of the place that noticed (`HEAD` for the head), None where no link is involved.
        peer: the other side by name, for example `stage 1`.
        endpoint: the address between them.
        epoch: the link's epoch when it happened.
        sequence: the last message of that epoch that went over the link; -1 for none.
        state: the state of the link: `waiting`, `connected`, `lost` or `refused`.
    """

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        stage: int | None = None,
        peer: str | None = None,
        endpoint: str | None = None,
        epoch: int | None = None,
        sequence: int | None = None,
        state: str | None = None,
        exit_code: ExitCode = ExitCode.STAGE,
    ) -> None:
        super().__init__(message, hint, exit_code)
        self.stage = stage
        self.peer = peer
        self.endpoint = endpoint
        self.epoch = epoch
        self.sequence = sequence
        self.state = state


class SealedChannelLost(WireFault):
    """The sealed channel has failed while a message was on its way in it."""


class WireError(WireFault):
    """A malformed message, refused before memory is allocated for it."""


class LinkError(WireFault):
    """A link cannot do what it guarantees, or was used against its rules."""


class LinkTimeout(LinkError):
    """A deadline passed; the message says what was awaited and the state of the link."""


class LinkRefused(LinkError):
    """One side of a link rejects the other: another place, run, plan or protocol, or a second peer."""


class PeerLost(LinkError):
    """The process at the other end of a link has ended, or the connection to it broke."""


class StaleEpoch(LinkError):
    """A message of an epoch that is over."""


class WrongCall(LinkError):
    """Tensors of another call than the one that is being done: nothing was computed with them."""
