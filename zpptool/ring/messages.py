# SPDX-License-Identifier: Apache-2.0
"""What the head and the stages say to each other, as typed messages.

A control message is one msgpack map with a tag, decoded into exactly one of the structs below: an unknown tag, a
missing field or a field of another type is an error, never a guess. What a `Call` or a `Reply` carries for the engine
(its payload) rides beside it as a frame of its own and is opaque here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from zpptool.errors import ExitCode, ZppError
from zpptool.ring.status import StageStatus
from zpptool.wire.link import LinkError
from zpptool.wire.message.framing import Buffer

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What is counted is never negative."""
Place = Annotated[int, msgspec.Meta(ge=0, lt=2**15)]
"""A stage, or how many there are: as many as the preamble of a message can name."""


Ranges = Annotated[tuple[tuple[Count, Count], ...], msgspec.Meta(max_length=2**15)]
"""A half-open layer range for each stage."""


class StageFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one process of the ring says about itself in the roll call.

    Attributes:
        stage: its place.
        host: the name of its machine.
        pid: its process id there.
        num_stages: how many stages it was told that there are.
        layers: the half-open layer range that it owns.
        agreed: what has to be the same in the whole pipeline (model digest, dtype, versions, ...), by name.
        movable: whether it can load other layers than its own, as one can that reads the full checkpoint.
    """

    stage: Place
    host: str
    pid: Count
    num_stages: Place
    layers: tuple[Count, Count]
    agreed: dict[str, str]
    movable: bool = True

    @property
    def seat(self) -> Seat:
        """Its place, and who holds it."""
        return Seat(self.stage, self.host, self.pid)


class RollCall(msgspec.Struct, tag="roll-call", frozen=True, forbid_unknown_fields=True):
    """Goes once round the ring before anything is loaded; every stage adds itself."""

    stages: tuple[StageFacts, ...]


class Verdict(msgspec.Struct, tag="verdict", frozen=True, forbid_unknown_fields=True):
    """The head's word on the stages that answered the roll call: why they do not fit together; no reason, they do."""

    reasons: tuple[str, ...]


class Call(msgspec.Struct, tag="call", frozen=True, forbid_unknown_fields=True):
    """The head asks every stage to do something.

    Attributes:
        number: counts the calls of a run; a reply bears the number of its call.
        method: what to do, in the engine's words.
        from_all: every stage replies; otherwise only the last one does, and any stage that fails.
        long: it may take minutes, as loading does; otherwise it is a step, and a stage that stands still at it hangs.
        setup: its place among the calls that set a stage up, which are repeated in every epoch; None for any other.
    """

    number: Count
    method: str
    from_all: bool
    long: bool = False
    setup: Count | None = None


class Reply(msgspec.Struct, tag="reply", frozen=True, forbid_unknown_fields=True):
    """One stage's answer to one call, on its way to the head."""

    number: Count
    stage: Place


class Fault(msgspec.Struct, tag="fault", frozen=True, forbid_unknown_fields=True):
    """A stage cannot go on, on its way to the head.

    Attributes:
        stage: whose word it is.
        number: the call that failed; None where it is more than a call.
        message, detail: what happened.
        code: what the head should leave with.
        lost: the epoch that came to an end with it; None where that is not told.
    """

    stage: Place
    number: Count | None
    message: str
    detail: str
    code: int = int(ExitCode.STAGE)
    lost: Count | None = None

    def as_error(self) -> ZppError:
        """The fault as the head raises it."""
        code = ExitCode(self.code) if self.code in set(ExitCode) else ExitCode.STAGE
        return ZppError(self.message, self.detail or None, code)


class Stop(msgspec.Struct, tag="stop", frozen=True, forbid_unknown_fields=True):
    """The run is over; goes once round the ring, and every stage ends: in good order, unless the pipeline `broke`."""

    reason: str
    broke: bool


class Seat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who holds a place: the process of that id on that machine."""

    stage: Place
    host: str
    pid: Count


class Leave(msgspec.Struct, tag="leave", frozen=True, forbid_unknown_fields=True):
    """Whoever holds one of these seats is to leave between two calls, and to come again; goes once round the ring.

    Attributes:
        seats: whose end is wanted; whoever has come in their place meanwhile is not meant.
        why: for their logs.
        moved_to: where another process will send from in the place of the one that leaves, which does not come again;
            empty where it does.
        partition: every stage's half-open layer range from then on; empty where they stay what they are.
    """

    seats: tuple[Seat, ...]
    why: str
    moved_to: str = ""
    partition: Ranges = ()


class Moved(msgspec.Struct, tag="moved", frozen=True, forbid_unknown_fields=True):
    """The last word of a stage that does not come again, to whoever receives from it: where to find its place."""

    address: str


class Report(msgspec.Struct, tag="report", frozen=True, forbid_unknown_fields=True):
    """How a stage and those after it fare, told against the direction of the ring twice a second."""

    stages: tuple[StageStatus, ...]


Control = RollCall | Verdict | Call | Reply | Fault | Stop | Leave | Moved | Report

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Control)


class Received(NamedTuple):
    """A control message, the payload that rode beside it (empty for none), and the epoch it came in."""

    control: Control
    payload: bytes
    epoch: int = 0


def encode(control: Control) -> bytes:
    """The header bytes of a control message."""
    return _encoder.encode(control)


def decode_told(payload: bytes) -> Control:
    """A control message that was told against the direction of the ring.

    Raises:
        msgspec.DecodeError: it is not one.
    """
    try:
        control: Control = _decoder.decode(payload)
    except (UnicodeDecodeError, RecursionError) as cause:
        raise msgspec.DecodeError(str(cause)) from cause
    return control


def decode(
    header: bytes, frames: Sequence[Buffer], *, stage: int, peer: str, endpoint: str, epoch: int = 0
) -> Received:
    """A control message from the header and frames that came from `peer`.

    Raises:
        LinkError: the bytes are not one of the messages above, or more than one frame rides beside it.
    """
    try:
        control = _decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise LinkError(
            f"{peer} sent a control message that cannot be read ({cause})", stage=stage, peer=peer, endpoint=endpoint
        ) from cause
    if len(frames) > 1:
        raise LinkError(
            f"{peer} sent {len(frames)} frames with one control message", stage=stage, peer=peer, endpoint=endpoint
        )
    return Received(control, bytes(frames[0]) if frames else b"", epoch)
