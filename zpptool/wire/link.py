# SPDX-License-Identifier: Apache-2.0
"""One hop of the ring: a PUSH that sends whole messages, a PULL that receives them, and no wait without a deadline.

The invariant: messages of one `PushLink` reach one `PullLink` whole, once and in order, or one of the two raises an
error that names stage, peer, endpoint and what was awaited. Memory is bounded: at most `high_water_mark` messages wait
on each side. A link may be used from any thread of the process that made it; one call at a time goes through.
"""

from __future__ import annotations

from zpptool.wire.endpoint import HIGH_WATER_MARK
from zpptool.wire.errors import LinkError, LinkTimeout, SequenceError
from zpptool.wire.pull import PullLink
from zpptool.wire.push import ZERO_COPY_BYTES, PushLink, Sent

__all__ = [
    "HIGH_WATER_MARK",
    "ZERO_COPY_BYTES",
    "LinkError",
    "LinkTimeout",
    "PullLink",
    "PushLink",
    "Sent",
    "SequenceError",
]
