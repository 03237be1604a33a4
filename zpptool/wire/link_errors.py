# SPDX-License-Identifier: Apache-2.0
"""The ways a wire fails: bytes that cannot be right, a link that broke its promise, a wait that ended.

Each carries who noticed (`stage`), who is on the other side (`peer`), where (`endpoint`), and how the link stood then
(`epoch`, `sequence`, `state`), so that a supervisor can act without reading the sentence. All leave with exit code
`STAGE`, but for a peer that was given another plan, which is `INVALID`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zpptool.errors import ExitCode, ZppError

if TYPE_CHECKING:
    pass





class WireFault(ZppError):
    """Anything that goes wrong between two places.

    Attributes:
        stage: index of the place that noticed (`HEAD` for the head), None where no link is involved.
        peer: the other side by name, for example `stage 1`.
        endpoint: the address between them.
        epoch: the link's epoch when it happened.
        sequence: the last message that went over the link in that epoch; -1 for none.
        state: how the link stood: `waiting`, `connected`, `lost` or `refused`.
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


class WireError(WireFault):
    """A message that cannot be right: refused before anything was allocated for it."""


class LinkError(WireFault):
    """A link that cannot do what it promised, or was used against its rules."""


class LinkTimeout(LinkError):
    """A deadline passed; the message says what was awaited and how the link stood."""


class LinkRefused(LinkError):
    """One side of a link will not have the other: another place, run, plan or protocol, or a second peer."""


class PeerLost(LinkError):
    """The process on the other side of a link has gone, or the way to it is cut."""


class StaleEpoch(LinkError):
    """A message of an epoch that is over."""


