# SPDX-License-Identifier: Apache-2.0
"""The two ends of a measurement of links: the one that asks, and the one that responds, each with both directions.

They are a ring of two: the asking end is stage 0 with the head, the responding end is stage 1, so a message goes from
stage 0 to stage 1, and back from there to the head, over the links that a pipeline of two stages has, with its keys.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated

import msgspec

from zpptool.errors import stage_error
from zpptool.places import HEAD
from zpptool.wire.compression.adaptive import WireCodec
from zpptool.wire.link import LinkOptions, LinkReceiver, LinkSender
from zpptool.wire.message.framing import Kind
from zpptool.wire.security.exposure import LinkSecurity
from zpptool.wire.security.key_files import KeyFile, link_keys

MOST_BYTES = 64 << 20
MOST_MESSAGES = 4096
_PIPELINE = 2
"""The key files have to be those of a pipeline of so many stages."""


class _Echo(msgspec.Struct, frozen=True, tag=True):
    """Send this message back."""


class _Sink(msgspec.Struct, frozen=True, tag=True):
    """One of several messages; so many follow. The last one is confirmed."""

    left: Annotated[int, msgspec.Meta(ge=0, le=MOST_MESSAGES)]


class _Burst(msgspec.Struct, frozen=True, tag=True):
    """Send so many messages of so many bytes."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MOST_MESSAGES)]
    size: Annotated[int, msgspec.Meta(ge=0, le=MOST_BYTES)]


class _Done(msgspec.Struct, frozen=True, tag=True):
    """The answer, and the end of the measurement."""


_Message = _Echo | _Sink | _Burst | _Done
_decoder = msgspec.msgpack.Decoder(_Message)
_encode = msgspec.msgpack.encode


class LinkEnd:
    """One end, with a link in each direction. Use as a context manager.

    Args:
        own: the endpoint to bind, from which this end sends.
        other: the endpoint that the other end binds.
        responds: whether this is the responding end.
        keys: of stage 1 where it responds, of stage 0 otherwise; None for none.
        insecure: allow links to other machines without keys.
        codec: whether what is sent is compressed.
        timeout_s: how long each message may take, and the other end to appear.

    Raises:
        ZppError: (ADDRESS) an endpoint cannot be used, or not without keys; (INVALID) the keys are another stage's.
    """

    def __init__(
        self,
        own: str,
        other: str,
        *,
        responds: bool,
        keys: KeyFile | None = None,
        insecure: bool = False,
        codec: WireCodec = WireCodec.NONE,
        timeout_s: float = 60.0,
    ) -> None:
        self._timeout_s = timeout_s
        place, after, receives = (1, HEAD, 1) if responds else (0, 1, HEAD)
        before = 0 if responds else 1
        sending = LinkSecurity(link_keys(keys, place, after) if keys else None, insecure)
        receiving = LinkSecurity(link_keys(keys, receives, before) if keys else None, insecure)
        self._sender = LinkSender(own, stage=place, peer=after, options=LinkOptions(codec=codec, security=sending))
        try:
            self._receiver = LinkReceiver(other, stage=receives, peer=before, options=LinkOptions(security=receiving))
        except BaseException:
            self._sender.close()
            raise

    @property
    def endpoint(self) -> str:
        """The endpoint that this end has bound."""
        return self._sender.endpoint

    def round_trip(self) -> float:
        """Seconds that a small message takes to the other end and back."""
        began = time.perf_counter()
        self._send(_Echo())
        self._receive(_Echo)
        return time.perf_counter() - began

    def send_rate(self, size: int, count: int, round_trip_s: float) -> float:
        """Bytes per second to the other end, of messages of so many bytes.

        Args:
            size: bytes of a message.
            count: how many are sent one after the other.
            round_trip_s: is subtracted for the confirmation of the last one.
        """
        frames = [memoryview(os.urandom(size))]
        began = time.perf_counter()
        for left in range(count - 1, -1, -1):
            self._send(_Sink(left), frames)
        self._receive(_Done)
        return size * count / max(time.perf_counter() - began - round_trip_s, 1e-9)

    def receive_rate(self, size: int, count: int, round_trip_s: float) -> float:
        """Likewise from the other end."""
        began = time.perf_counter()
        self._send(_Burst(count, size))
        for _ in range(count):
            self._receive(_Sink)
        return size * count / max(time.perf_counter() - began - round_trip_s, 1e-9)

    def finish(self) -> None:
        """End the measurement: the responding end returns from `respond`."""
        self._send(_Done())
        self._receive(_Done)

    def respond(self) -> int:
        """Answer the other end until it ends the measurement; returns how many messages it sent.

        Raises:
            ZppError: (STAGE) the other end did not appear, was lost, or fell silent.
        """
        received = 0
        while True:
            message = self._receive()
            received += 1
            match message:
                case _Echo():
                    self._send(_Echo())
                case _Sink(0):
                    self._send(_Done())
                case _Burst(count, size):
                    frames = [memoryview(os.urandom(size))]
                    for left in range(count - 1, -1, -1):
                        self._send(_Sink(left), frames)
                case _Done():
                    self._send(_Done())
                    return received

    def close(self) -> None:
        """Close both links; what was sent last is delivered first."""
        self._sender.close()
        self._receiver.close()

    def __enter__(self) -> LinkEnd:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, message: _Message, frames: Sequence[memoryview] = ()) -> None:
        self._sender.send(Kind.CONTROL, _encode(message), frames, timeout_s=self._timeout_s)

    def _receive(self, kind: type[_Message] | None = None) -> _Message:
        received = self._receiver.recv(self._timeout_s)
        try:
            message = _decoder.decode(received.header)
        except msgspec.DecodeError as cause:
            raise stage_error(f"the other end does not measure links: it sent {len(received.header)} bytes") from cause
        if kind is not None and not isinstance(message, kind):
            raise stage_error(f"the other end answered with {type(message).__name__}, not {kind.__name__}")
        return message
