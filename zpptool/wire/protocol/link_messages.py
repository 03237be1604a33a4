# SPDX-License-Identifier: Apache-2.0
"""What the two ends of a link say to each other beside the messages that they carry: typed words, no guesses.

The receiver greets (`Hello`) and the sender answers with `Welcome`, `Hold` or `Refused`; then the receiver tells what
it has taken (`Taken`), answers `Ping`, and passes on what its own stage has to say (`Told`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from zpptool.places import HEAD
from zpptool.wire.link_errors import WireError
from zpptool.wire.message.framing import Limits
from zpptool.wire.protocol.flow_control import Window

WORD_LIMITS = Limits(max_frames=0, max_header_bytes=256 << 10, max_frame_bytes=256 << 10, max_message_bytes=512 << 10)
"""What is accepted of a word: enough for a report on a thousand stages, and little for a stranger to make us hold."""


class Party(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who one end of a link is, as it tells the other.

    Attributes:
        stage: its place.
        num_stages: how many stages it was told that there are; 0 where nobody told it.
        digest: of the plan that it was started from; empty for none.
        run_id: the run that it takes part in; empty before it knows.
        epoch: the highest epoch that it knows of.
    """

    stage: Annotated[int, msgspec.Meta(ge=HEAD, lt=2**15)]
    num_stages: Annotated[int, msgspec.Meta(ge=0, lt=2**15)] = 0
    digest: str = ""
    run_id: str = ""
    epoch: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0


class Hello(msgspec.Struct, tag="hello", frozen=True, forbid_unknown_fields=True):
    """A receiver's greeting, the first word of every connection.

    Attributes:
        party: who greets.
        window: how much it lets the sender have under way.
        limits: what it accepts of one message.
        offers: what else it can do, by name.
    """

    party: Party
    window: Window
    limits: Limits
    offers: dict[str, str]


class Welcome(msgspec.Struct, tag="welcome", frozen=True, forbid_unknown_fields=True):
    """The sender's yes: from now on the messages of this session, counted from 0. A later one begins a new epoch.

    Attributes:
        party: who welcomes.
        window: how much the sender will have under way.
        offers: which of the receiver's offers are taken, by name.
    """

    party: Party
    window: Window
    offers: dict[str, str]


class Hold(msgspec.Struct, tag="hold", frozen=True, forbid_unknown_fields=True):
    """The sender's not yet; a `Welcome` or `Refused` follows when it may."""

    reason: str


class Refused(msgspec.Struct, tag="refused", frozen=True, forbid_unknown_fields=True):
    """One side's no.

    Attributes:
        reason: in words.
        plan: whether the two were given different plans, which nothing but a new start mends.
    """

    reason: str
    plan: bool


class Taken(msgspec.Struct, tag="taken", frozen=True, forbid_unknown_fields=True):
    """How many messages of its session the receiver has handed on."""

    count: Annotated[int, msgspec.Meta(ge=0)]


class Ping(msgspec.Struct, tag="ping", frozen=True, forbid_unknown_fields=True):
    """The sender asks how long a word takes there and back; `at` is its own clock, in seconds."""

    at: float


class Pong(msgspec.Struct, tag="pong", frozen=True, forbid_unknown_fields=True):
    """The answer to a `Ping`, with its `at`."""

    at: float


class Told(msgspec.Struct, tag="told", frozen=True, forbid_unknown_fields=True):
    """Bytes from the receiver's owner to the sender's, opaque here."""

    payload: bytes


Word = Hello | Welcome | Hold | Refused | Taken | Ping | Pong | Told

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Word)


def encode_word(word: Word) -> bytes:
    """The header of the message that carries a word."""
    return _encoder.encode(word)


def decode_word(header: bytes) -> Word:
    """The word in a header.

    Raises:
        WireError: it is none of the above.
    """
    try:
        word: Word = _decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise WireError(f"a word of the link that cannot be read ({cause}).") from cause
    return word
