# SPDX-License-Identifier: Apache-2.0
"""What sender and receiver say about the sealed channel in greeting and welcome."""

from __future__ import annotations

import msgspec

from zpptool.wire.link_errors import WireError
from zpptool.wire.sealed.session_keys import SECRET_BYTES

NAME = "aes-256-gcm"
"""Its name among the offers of a greeting and a welcome, and in `status`."""
VERSION = "1"
"""What a greeting offers under that name."""
CHANNEL = 2
"""Its number in the table of an announcement."""
LANES = 2
"""Connections, and threads at each end. Two fill a link of 25 Gbit/s (benchmarks/encryption.py)."""


class SealedOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the welcome says.

    Attributes:
        port: where the sender listens, at the host of the link.
        secret: of the session.
    """

    port: int
    secret: bytes

    def __repr__(self) -> str:
        """Without the secret."""
        return f"SealedOffer(port={self.port})"


def encode_offer(offer: SealedOffer) -> str:
    """The offer as it is sent in a welcome."""
    return msgspec.json.encode(offer).decode()


def decode_offer(text: str) -> SealedOffer:
    """The offer of a welcome.

    Raises:
        WireError: it is none.
    """
    try:
        offer = msgspec.json.decode(text, type=SealedOffer)
    except msgspec.MsgspecError as cause:
        raise WireError(f"an offer of the sealed channel that cannot be read ({cause}).") from cause
    if len(offer.secret) != SECRET_BYTES or not 0 < offer.port < 1 << 16:
        raise WireError("an offer of the sealed channel without a valid port and secret.")
    return offer
