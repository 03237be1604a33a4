# SPDX-License-Identifier: Apache-2.0
"""The keys of one session's sealed channel, derived from a secret that the sender draws for it.

The secret is sent in the welcome, which is a message of the CURVE session: it is encrypted and authenticated there, and
has CURVE's forward secrecy. A session, a lane and a purpose never share a key, so a counter is a nonce that is used
once.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SECRET_BYTES = 32
PROOF_BYTES = 32


def new_secret() -> bytes:
    """The secret of a new session."""
    return secrets.token_bytes(SECRET_BYTES)


def lane_key(secret: bytes, lane: int) -> bytes:
    """The AES-256 key of the records of one lane."""
    return _derived(secret, b"records", lane)


def lane_proof(secret: bytes, lane: int) -> bytes:
    """What the receiver sends first on the connection of a lane, to prove that it is the welcome receiver.

    It is used once: the listener accepts each lane once, and another session has another secret.
    """
    return hmac.digest(_derived(secret, b"proof", lane), b"zpptool sealed channel", hashlib.sha256)


def _derived(secret: bytes, purpose: bytes, lane: int) -> bytes:
    info = b"zpptool sealed channel 1 " + purpose + b" " + str(lane).encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)
