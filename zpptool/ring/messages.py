# SPDX-License-Identifier: Apache-2.0
"""The control messages between the head and the stages.

A control message is one msgpack map with a tag, decoded into exactly one of the structs below: an unknown tag, a
missing field or a field of another type is an error, never a guess. The payload of a `Call` or a `Reply` is the
engine's; it is a frame of its own after the control message, and opaque here.
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
"""A number that is never negative."""
Place = Annotated[int, msgspec.Meta(ge=0, lt=2**15)]
"""A stage index, or a number of stages: as large as the preamble of a message can hold."""
Ranges = Annotated[tuple[tuple[Count, Count], ...], msgspec.Meta(max_length=2**15)]
"""A half-open layer range for each stage."""
MODEL_SOURCE = "model source"
"""The name of the fact that says where a stage's model comes from and at which commit. A stage that reads a path lacks
it, so it is compared only among the stages that have it."""


FITS_ALL = "any"
"""The value of an agreed fact that fits every other one: of a stage that it does not concern."""


class StageFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stage reports about itself in the roll call.

    Attributes:
        stage: its place.
        host: the name of its machine.
        pid: its process id there.
        num_stages: how many stages it was configured with.
        layers: the half-open layer range that it owns.
        agreed: what has to be the same in the whole pipeline (model digest, dtype, versions, ...), by name.
        movable: whether it can load other layers than its own, because it reads the full checkpoint.
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
        """Its place, and the process that holds it."""
        return Seat(self.stage, self.host, self.pid)


class RollCall(msgspec.Struct, tag="roll-call", frozen=True, forbid_unknown_fields=True):
    """Passes once round the ring before anything is loaded; every stage adds its facts."""

    stages: tuple[StageFacts, ...]


class Verdict(msgspec.Struct, tag="verdict", frozen=True, forbid_unknown_fields=True):
    """The head's decision on a roll call: why the stages do not fit together; without reasons, they are admitted."""

    reasons: tuple[str, ...]


class Call(msgspec.Struct, tag="call", frozen=True, forbid_unknown_fields=True):
    """The head asks every stage to do something.

    Attributes:
        number: counts the calls of a run; a reply has the number of its call.
        method: what to do, named by the engine.
        from_all: every stage replies; otherwise only the last one does, and any stage that fails.
        long: it may take minutes, as loading does; otherwise it is a step, and a stage without progress at it hangs.
        setup: its index among the set-up calls, which are repeated in every epoch; None for any other call.
        request: the id of the one request that it is a step of; empty for several or none.
        trace: what spans of that request name as their parent, a W3C `traceparent`; empty where none are recorded.
    """

    number: Count
    method: str
    from_all: bool
    long: bool = False
    setup: Count | None = None
    request: str = ""
    trace: str = ""


class Reply(msgspec.Struct, tag="reply", frozen=True, forbid_unknown_fields=True):
    """One stage's answer to one call, on its way to the head."""

    number: Count
    stage: Place


class Fault(msgspec.Struct, tag="fault", frozen=True, forbid_unknown_fields=True):
    """A stage cannot go on, on its way to the head.

    Attributes:
        stage: the stage that reports it.
        number: the call that failed; None if more than a call is affected.
        message, detail: what happened.
        code: the exit code for the head.
        lost: the epoch that ended with it; None if it ended none.
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
    """The run is over. Passes once round the ring; every stage ends, without an error unless the pipeline `broke`."""

    reason: str
    broke: bool


class Seat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place and the process that holds it."""

    stage: Place
    host: str
    pid: Count


class Leave(msgspec.Struct, tag="leave", frozen=True, forbid_unknown_fields=True):
    """Asks the processes with these seats to leave between two calls, and to restart. Passes once round the ring.

    Attributes:
        seats: the processes that are to leave; one that has taken such a place since is not asked.
        why: for their logs.
        moved_to: the address from which another process will send in place of the one that leaves, which then does not
            restart; empty where it restarts.
        partition: every stage's half-open layer range after that; empty if they do not change.
    """

    seats: tuple[Seat, ...]
    why: str
    moved_to: str = ""
    partition: Ranges = ()


class Moved(msgspec.Struct, tag="moved", frozen=True, forbid_unknown_fields=True):
    """The last message of a stage that does not restart, to the next place: the new address of its place."""

    address: str


class Report(msgspec.Struct, tag="report", frozen=True, forbid_unknown_fields=True):
    """The status of a stage and of those after it, sent upstream every `BEAT_S` seconds."""

    stages: tuple[StageStatus, ...]


Control = RollCall | Verdict | Call | Reply | Fault | Stop | Leave | Moved | Report

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Control)


class Received(NamedTuple):
    """A control message, its payload (empty for none), and the epoch that it was sent in."""

    control: Control
    payload: bytes
    epoch: int = 0


def encode_control(control: Control) -> bytes:
    """The header bytes of a control message."""
    return _encoder.encode(control)


def decode_upstream(payload: bytes) -> Control:
    """A control message that was sent upstream, against the direction of the ring.

    Raises:
        msgspec.DecodeError: it is not one.
    """
    try:
        control: Control = _decoder.decode(payload)
    except (UnicodeDecodeError, RecursionError) as cause:
        raise msgspec.DecodeError(str(cause)) from cause
    return control


def decode_control(
    header: bytes, frames: Sequence[Buffer], *, stage: int, peer: str, endpoint: str, epoch: int = 0
) -> Received:
    """A control message from the header and frames that `peer` sent.

    Raises:
        LinkError: the bytes are not one of the messages above, or more than one frame comes with it.
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
