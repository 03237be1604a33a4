# SPDX-License-Identifier: Apache-2.0
"""The token that lets one stage join a pipeline: made with the plan, written as one word, and read back. Pure.

The invariant: a token of a stage holds that stage's secret only. The token of stage 0 holds what the listener needs:
the plan, the listener's own secret key, and the root from which the secret of every stage follows. So it has to be kept
like the keys of the whole pipeline.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import zlib

import msgspec
import zmq

from zpptool.config.plan import MAX_PLAN_BYTES, PipelinePlan
from zpptool.errors import invalid_error
from zpptool.invites.proof import SECRET_BYTES, Terms, stage_secret

PREFIX = "zpp1-"
MAX_CHARACTERS = 1 << 17
"""Longer than any token; one of an ordinary plan has 400 characters, stage 0's some thousand."""
_CHECKSUM_BYTES = 6
_HINT = "Copy the whole token that zpptool plan --invite printed for this stage, or make new ones."


class HeadPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What only stage 0's token holds.

    Attributes:
        listener_secret: the secret key of the listener, in Z85.
        root: the secret from which the secrets of all stages follow.
        plan: the plan's file, compressed.
    """

    listener_secret: str
    root: bytes
    plan: bytes

    def __repr__(self) -> str:
        return "HeadPart(...)"


class Invite(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stage's token.

    Attributes:
        terms: what the tokens of one pipeline have in common.
        stage: who is invited.
        num_stages: how many stages there are.
        source: what the plan names the model: `hf://org/name@commit`, or a path.
        secret: proves to the listener that this token was made with its own.
        head: stage 0's part; None for every other stage.
    """

    terms: Terms
    stage: int
    num_stages: int
    source: str
    secret: bytes
    head: HeadPart | None = None

    def __repr__(self) -> str:
        return f"Invite(stage={self.stage}, plan={self.terms.plan!r})"

    @property
    def pipeline(self) -> str:
        """Identifies the tokens that were made together, in the names of directories."""
        return hashlib.sha256(f"{self.terms.plan} {self.terms.listener}".encode()).hexdigest()[:16]

    def refuse_expired(self, now: float) -> None:
        """Refuse a token whose time is over; raises ZppError (INVALID).

        Args:
            now: seconds since the epoch, by this machine's clock.
        """
        if now >= self.terms.expires:
            hours = (now - self.terms.expires) / 3600
            raise invalid_error(
                f"the invite of stage {self.stage} expired {hours:.1f} h ago by this machine's clock",
                "Make new ones with zpptool plan --invite, for every stage.",
            )

    def to_text(self) -> str:
        """The token as one word."""
        content = msgspec.msgpack.encode(self)
        return PREFIX + _word(content + _checksum(content))


def make_invites(plan: PipelinePlan, address: str, expires: int) -> tuple[Invite, ...]:
    """New tokens for every stage of a plan, in order.

    Args:
        plan: the plan.
        address: where the stages find the listener, on the host of stage 0.
        expires: seconds since the epoch after which no stage can join.
    """
    public, listener_secret = zmq.curve_keypair()
    root = secrets.token_bytes(SECRET_BYTES)
    terms = Terms(plan=plan.digest, address=address, listener=public.decode(), expires=expires)
    head = HeadPart(
        listener_secret=listener_secret.decode(), root=root, plan=zlib.compress(plan.to_yaml().encode(), level=9)
    )
    return tuple(
        Invite(
            terms=terms,
            stage=stage,
            num_stages=len(plan.stages),
            source=plan.model,
            secret=stage_secret(root, terms, stage),
            head=head if stage == 0 else None,
        )
        for stage in range(len(plan.stages))
    )


def read_invite(text: str) -> Invite:
    """The token in a text.

    Raises:
        ZppError: (INVALID) it is no token, or not a whole and unchanged one. The message never holds it.
    """
    text = text.strip()
    if not text.startswith(PREFIX) or len(text) > MAX_CHARACTERS:
        raise invalid_error(f"that is not an invite: one begins with {PREFIX}", _HINT)
    body = text.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    content, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if not content or checksum != _checksum(content) or _word(raw) != body:
        raise invalid_error("the invite is damaged: a part of it is missing or was changed", _HINT)
    try:
        invite = msgspec.msgpack.decode(content, type=Invite)
    except (msgspec.MsgspecError, RecursionError):
        raise invalid_error("the invite is of another release of zpptool, or was changed", _HINT) from None
    if not 0 <= invite.stage < invite.num_stages or (invite.stage == 0) != (invite.head is not None):
        raise invalid_error("the invite was changed: its stage does not fit its content", _HINT)
    return invite


def plan_text(head: HeadPart) -> bytes:
    """The content of the plan's file in stage 0's token; raises ZppError (INVALID) if it is damaged."""
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(head.plan, MAX_PLAN_BYTES)
    except zlib.error:
        raise invalid_error("the plan in the invite is damaged", _HINT) from None
    if not inflate.eof:
        raise invalid_error("the plan in the invite is longer than any plan", _HINT)
    return text


def _word(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _checksum(content: bytes) -> bytes:
    """Detects a token that was not copied whole. It proves nothing: the proofs of the protocol do that."""
    return hashlib.sha256(content).digest()[:_CHECKSUM_BYTES]
