# SPDX-License-Identifier: Apache-2.0
"""The messages that the two ends of a link exchange beside those that they carry, as typed structs.

The receiver greets (`Hello`) and the sender answers with `Welcome`, `Hold` or `Refused`; then the receiver acknowledges
what it has taken (`Acknowledgement`), answers `Ping`, and sends its owner's payloads upstream (`Notification`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from zpptool.places import HEAD
from zpptool.wire.link_errors import WireError
from zpptool.wire.message.framing import Limits
from zpptool.wire.protocol.flow_control import Window

LINK_MESSAGE_LIMITS = Limits(
    max_frames=0, max_header_bytes=256 << 10, max_frame_bytes=256 << 10, max_message_bytes=512 << 10
)
"""Bounds of a link message: enough for a status report on a thousand stages, and little memory for a hostile peer."""


class Party(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The identity of one end of a link.

    Attributes:
        stage: its place.
        num_stages: how many stages it was started with; 0 where it was started without that number.
        digest: of the plan that it was started from; empty for none.
        run_id: the run that it takes part in; empty while it is in none.
        epoch: the highest epoch that it knows of.
    """

    stage: Annotated[int, msgspec.Meta(ge=HEAD, lt=2**15)]
    num_stages: Annotated[int, msgspec.Meta(ge=0, lt=2**15)] = 0
    digest: str = ""
    run_id: str = ""
    epoch: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0


class Hello(msgspec.Struct, tag="hello", frozen=True, forbid_unknown_fields=True):
    """A receiver's greeting, the first message of every connection.

    Attributes:
        party: the receiver.
        window: how much it lets the sender have in flight.
        limits: what it accepts of one message.
        offers: the side channels that it can use, by name, each with the location that the sender has to share.
    """

    party: Party
    window: Window
    limits: Limits
    offers: dict[str, str]


class Welcome(msgspec.Struct, tag="welcome", frozen=True, forbid_unknown_fields=True):
    """The sender admits the receiver: the messages of this session follow, counted from 0. Another one begins an epoch.

    Attributes:
        party: the sender.
        window: how much the sender will have in flight.
        offers: the side channels that the sender has opened, by name, each with what the receiver needs to open it.
    """

    party: Party
    window: Window
    offers: dict[str, str]


class Hold(msgspec.Struct, tag="hold", frozen=True, forbid_unknown_fields=True):
    """The sender does not admit the receiver yet; a `Welcome` or `Refused` follows.

    Attributes:
        reason: why, as a clause.
    """

    reason: str


class Refused(msgspec.Struct, tag="refused", frozen=True, forbid_unknown_fields=True):
    """One side rejects the other.

    Attributes:
        reason: why, as a clause.
        plan: whether the two were started with different plans, which only a restart can repair.
    """

    reason: str
    plan: bool


class Acknowledgement(msgspec.Struct, tag="taken", frozen=True, forbid_unknown_fields=True):
    """The receiver has handed the first `count` messages of its session to its owner."""

    count: Annotated[int, msgspec.Meta(ge=0)]


class Ping(msgspec.Struct, tag="ping", frozen=True, forbid_unknown_fields=True):
    """The sender measures the round trip; `at` is the sender's clock, in seconds."""

    at: float


class Pong(msgspec.Struct, tag="pong", frozen=True, forbid_unknown_fields=True):
    """The answer to a `Ping`, with its `at`."""

    at: float


class Notification(msgspec.Struct, tag="told", frozen=True, forbid_unknown_fields=True):
    """Bytes from the receiver's owner to the sender's owner, opaque to the link."""

    payload: bytes


LinkMessage = Hello | Welcome | Hold | Refused | Acknowledgement | Ping | Pong | Notification

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LinkMessage)


def encode_link_message(message: LinkMessage) -> bytes:
    """The header that carries a link message."""
    return _encoder.encode(message)


def decode_link_message(header: bytes) -> LinkMessage:
    """The link message in a header.

    Raises:
        WireError: it is none of the above.
    """
    try:
        message: LinkMessage = _decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise WireError(f"a link message that cannot be read ({cause}).") from cause
    return message
