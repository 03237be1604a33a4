# SPDX-License-Identifier: Apache-2.0
"""The secret of each invited stage, and the proof by which it shows the secret without sending it. Pure.

A secret is an HMAC of the terms and the stage under the root, which only stage 0's token holds: the listener derives it
and stores none. So a token of which anything was changed has a secret that the listener does not derive, and its proof
is wrong. The proof is an HMAC over the keys of both ends of the encrypted connection: it is of no use on another one.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

SECRET_BYTES = 32
PROOF_BYTES = 32
_SECRET = b"zpptool invite 1: secret of a stage"
_PROOF = b"zpptool invite 1: this key is the stage's"


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the tokens of one pipeline have in common.

    Attributes:
        plan: the digest of the plan.
        address: the endpoint of the listener.
        listener: its public key, in Z85.
        expires: seconds since the epoch after which no stage can join.
    """

    plan: str
    address: str
    listener: str
    expires: int


def stage_secret(root: bytes, terms: Terms, stage: int) -> bytes:
    """The secret in the token of a stage.

    Args:
        root: the secret of stage 0's token.
        terms: of the tokens.
        stage: whose token.
    """
    return hmac.digest(root, msgspec.msgpack.encode((_SECRET, terms, stage)), hashlib.sha256)


def proof_of(secret: bytes, terms: Terms, stage: int, public: str) -> bytes:
    """The proof that a connection belongs to an invited stage.

    Args:
        secret: of the stage's token.
        terms: of the token.
        stage: which one.
        public: the public key of the connection's client, which becomes the stage's key; in Z85.
    """
    return hmac.digest(secret, msgspec.msgpack.encode((_PROOF, terms, stage, public)), hashlib.sha256)


def is_proof(proof: bytes, root: bytes, terms: Terms, stage: int, public: str) -> bool:
    """Whether a proof is that of an invited stage, compared in constant time; arguments as above."""
    return hmac.compare_digest(proof, proof_of(stage_secret(root, terms, stage), terms, stage, public))
