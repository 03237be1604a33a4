# SPDX-License-Identifier: Apache-2.0
"""What a link can be configured with, the same for both of its ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from zpptool.wire.compression.adaptive import WireCodec
from zpptool.wire.message.framing import Limits
from zpptool.wire.protocol.flow_control import Window
from zpptool.wire.protocol.link_messages import Party
from zpptool.wire.security.exposure import LinkSecurity


@dataclass(frozen=True)
class LinkOptions:
    """The options of one end of a link.

    Attributes:
        party: the identity of this end. None: a sender starts a run of its own; a receiver takes over the run of the
            sender that welcomes it. A sender whose `run_id` is empty holds every receiver until `LinkSender.begin`.
        window: the most that may be in flight. The smaller of both ends' windows applies.
        limits: the largest message that is accepted. A sender applies the smaller of its own and the receiver's limits;
            a receiver disconnects before it allocates memory for a longer frame.
        codec: whether a sender compresses large messages. A receiver ignores it.
        shared_memory: whether the link may use shared memory and a Unix socket when both ends run on one host.
        security: the keys of both ends, without which an address that other users or machines can reach is refused.
        sealed: whether bulk frames of a link with keys may take the sealed channel, which listens at a port of its own
            for a moment. A link uses it where both ends allow it.
        follows: whether a receiver of another run may join the sender's run, and whether a receiver waits for the next
            epoch instead of failing when its sender is lost. The ring sets it when it recovers from losses.
    """

    party: Party | None = None
    window: Window = field(default_factory=Window)
    limits: Limits = field(default_factory=Limits)
    codec: WireCodec = WireCodec.NONE
    shared_memory: bool = True
    security: LinkSecurity = field(default_factory=LinkSecurity)
    sealed: bool = True
    follows: bool = False


DEFAULT_OPTIONS = LinkOptions()
