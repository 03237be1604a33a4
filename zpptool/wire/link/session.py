# SPDX-License-Identifier: Apache-2.0
"""A receiver that has greeted, and the session of one that was welcomed.

The invariant: a session belongs to one receiver and never changes; another receiver, or another epoch, is another
session.
"""

from __future__ import annotations

from typing import NamedTuple

from zpptool.wire.link.outbound import Outbound
from zpptool.wire.protocol.link_messages import Hello


class Candidate(NamedTuple):
    """A receiver that has greeted.

    Attributes:
        identity: its address in the ROUTER socket.
        connection: the file descriptor of its connection.
        hello: its greeting.
    """

    identity: bytes
    connection: int
    hello: Hello


class Session(NamedTuple):
    """A receiver that was welcomed.

    Attributes:
        receiver: whose session it is.
        number: the session number in its messages.
        outbound: encodes its messages.
    """

    receiver: Candidate
    number: int
    outbound: Outbound
