# SPDX-License-Identifier: Apache-2.0
"""One hop of the ring: a ROUTER sends whole messages to the one DEALER it has welcomed; every wait has a deadline.

The invariant: messages of one `PushLink` reach one `PullLink` whole, once and in order, or one of the two raises an
error that names stage, peer, endpoint and what was awaited. Memory is bounded: at most a `Window` of messages is under
way. A link may be used from any thread of the process that made it; one call at a time goes through.
"""

from __future__ import annotations

from zpptool.wire.link.receiver import PullLink
from zpptool.wire.link.sender import ZERO_COPY_BYTES, PushLink
from zpptool.wire.link.session import Sent
from zpptool.wire.link_errors import LinkError, LinkRefused, LinkTimeout, PeerLost, StaleEpoch
from zpptool.wire.protocol.flow_control import Window
from zpptool.wire.protocol.link_messages import Party
from zpptool.wire.protocol.sequence import SequenceError

__all__ = [
    "ZERO_COPY_BYTES",
    "LinkError",
    "LinkRefused",
    "LinkTimeout",
    "Party",
    "PeerLost",
    "PullLink",
    "PushLink",
    "Sent",
    "SequenceError",
    "StaleEpoch",
    "Window",
]
