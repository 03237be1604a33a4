# SPDX-License-Identifier: Apache-2.0
"""The two messages of the protocol: what a stage asks the listener, and what it answers. msgpack, within bounds."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from zpptool.config.plan import MAX_PLAN_BYTES
from zpptool.invites.proof import PROOF_BYTES
from zpptool.partition import MAX_STAGES

VERSION = 1
MAX_REQUEST_BYTES = 512
MAX_ANSWER_BYTES = MAX_PLAN_BYTES + (1 << 16)


class Redeem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stage's request, repeated until it knows the keys of its neighbours.

    Attributes:
        version: of the protocol.
        plan: the digest of the plan that its token is for.
        stage: which stage it is.
        proof: that it has the secret of that stage's token, for the key of this connection.
        has_joined: whether it has stored the keys, so that it will not ask again.
    """

    version: int
    plan: Annotated[str, msgspec.Meta(max_length=128)]
    stage: Annotated[int, msgspec.Meta(ge=0, le=MAX_STAGES)]
    proof: Annotated[bytes, msgspec.Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]
    has_joined: bool = False


class Verdict(StrEnum):
    """What the listener decides."""

    REFUSED = "refused"
    WAITING = "waiting"
    COMPLETE = "complete"


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The listener's answer.

    Attributes:
        verdict: what it decides.
        reason: why the stage is refused; empty otherwise.
        plan: the content of the plan's file.
        missing: the stages that have not redeemed their tokens yet.
        pipeline, created, peers: as in `KeyFile`; empty until no stage is missing.
    """

    verdict: Verdict
    reason: str = ""
    plan: bytes = b""
    missing: tuple[int, ...] = ()
    pipeline: str = ""
    created: str = ""
    peers: dict[str, str] = {}
