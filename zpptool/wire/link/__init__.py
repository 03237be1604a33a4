# SPDX-License-Identifier: Apache-2.0
"""One link of the ring: a ROUTER sends whole messages to the one DEALER it has welcomed; every wait has a deadline.

The invariant: messages of one `LinkSender` reach one `LinkReceiver` whole, once and in order, or one of the two raises
an error that names stage, peer, endpoint and what was awaited. Memory is bounded: at most a `Window` of messages is in
flight. A link may be used from any thread of the process that opened it; one call at a time has its socket.
"""

from __future__ import annotations

from zpptool.wire.link.link_options import LinkOptions
from zpptool.wire.link.receiver import LinkReceiver
from zpptool.wire.link.sender import ZERO_COPY_BYTES, LinkSender
from zpptool.wire.link.sent import Sent
from zpptool.wire.link_errors import LinkError, LinkRefused, LinkTimeout, PeerLost, StaleEpoch
from zpptool.wire.protocol.flow_control import Window
from zpptool.wire.protocol.link_messages import Party
from zpptool.wire.protocol.sequence import SequenceError

__all__ = [
    "ZERO_COPY_BYTES",
    "LinkError",
    "LinkOptions",
    "LinkReceiver",
    "LinkRefused",
    "LinkSender",
    "LinkTimeout",
    "Party",
    "PeerLost",
    "Sent",
    "SequenceError",
    "StaleEpoch",
    "Window",
]
