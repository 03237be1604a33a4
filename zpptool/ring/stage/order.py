# SPDX-License-Identifier: Apache-2.0
"""The call that tensors belong to, and how it is written before their header.

Tensors may be sent later than they are ordered, by another thread, when the main loop is at another call or in another
epoch. So session and call are recorded when the send is ordered, and the number of the call is sent with the tensors: a
stage never computes with those of another call.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from zpptool.ring.stage.losses import RunEpoch
from zpptool.wire.link_errors import WireError

_NUMBER = struct.Struct("<Q")


class SendOrder(NamedTuple):
    """What was being done when a send was ordered.

    Attributes:
        session: the run and the epoch.
        call: the number of the call.
    """

    session: RunEpoch
    call: int


def with_call(call: int, header: bytes) -> bytes:
    """The header of tensors that belong to this call."""
    return _NUMBER.pack(call) + header


def split_call(header: bytes) -> tuple[int, bytes]:
    """The number of the call, and the rest of the header.

    Raises:
        WireError: the header is too short to have a number.
    """
    if len(header) < _NUMBER.size:
        raise WireError(f"a tensor header of {len(header)} bytes has no number of a call.")
    return _NUMBER.unpack_from(header)[0], header[_NUMBER.size :]
