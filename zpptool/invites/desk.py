# SPDX-License-Identifier: Apache-2.0
"""What the listener answers: who is refused and why, who waits, and who gets the keys of its neighbours. No sockets."""

from __future__ import annotations

from collections.abc import Mapping

from zpptool.invites.invite import Invite
from zpptool.invites.ledger import Ledger
from zpptool.invites.messages import VERSION, Answer, Redeem, Verdict
from zpptool.invites.proof import is_proof
from zpptool.places import HEAD
from zpptool.wire.security.key_files import KeyFile, peers_of

RENEW = "zpptool plan --invite makes new ones for every stage"


class Desk:
    """Answers the requests of stages.

    Args:
        invite: stage 0's own.
        plan: the content of the plan's file.
        own: the key file of stage 0, without the keys of its neighbours.
        ledger: who has redeemed.
    """

    def __init__(self, invite: Invite, plan: bytes, own: KeyFile, ledger: Ledger) -> None:
        assert invite.head is not None
        self._terms, self._root = invite.terms, invite.head.root
        self._plan = plan
        self._own = own
        self._ledger = ledger

    @property
    def missing(self) -> tuple[int, ...]:
        """The stages that have not redeemed their tokens."""
        return tuple(stage for stage in range(1, self._own.num_stages) if stage not in self._ledger.redeemed)

    @property
    def is_done(self) -> bool:
        """Whether every stage has stored the keys of its neighbours."""
        return len(self._ledger.joined) == self._own.num_stages - 1

    def answer(self, request: Redeem, public: str, now: float) -> Answer:
        """The answer to one request. A token that is redeemed for the first time is recorded before.

        Args:
            request: of the stage.
            public: the key that the connection has proven to have.
            now: seconds since the epoch.

        Raises:
            OSError: it could not be recorded, and may not be answered.
        """
        reason = self._refusal(request, public, now)
        if reason:
            return Answer(verdict=Verdict.REFUSED, reason=reason)
        stage = request.stage
        if stage not in self._ledger.redeemed:
            self._ledger.record(stage, public)
        if request.has_joined and not self.missing and stage not in self._ledger.joined:
            self._ledger.record(stage, public, has_joined=True)
        if self.missing:
            return Answer(verdict=Verdict.WAITING, plan=self._plan, missing=self.missing)
        return Answer(
            verdict=Verdict.COMPLETE,
            plan=self._plan,
            pipeline=self._own.pipeline,
            created=self._own.created,
            peers=peers_of(stage, all_publics(self._own, self._ledger.redeemed), self._own.num_stages),
        )

    def _refusal(self, request: Redeem, public: str, now: float) -> str:
        """Why a request is refused; empty if it is not. Only version and plan are compared before the proof."""
        if request.version != VERSION:
            return f"its zpptool speaks version {request.version} of invites, and stage 0's speaks {VERSION}"
        if request.plan != self._terms.plan:
            return f"its invite is for another plan than that of stage 0; {RENEW}"
        invited = 1 <= request.stage < self._own.num_stages
        if not invited or not is_proof(request.proof, self._root, self._terms, request.stage, public):
            return "its invite was not made with that of stage 0, or it was changed"
        known = self._ledger.redeemed.get(request.stage)
        if known is not None and known != public:
            return (
                f"the invite of stage {request.stage} has been redeemed with another key, by another machine or user;"
                f" {RENEW}"
            )
        if known is None and now >= self._terms.expires:
            return f"the invite of stage {request.stage} has expired; {RENEW}"
        return ""


def all_publics(own: KeyFile, redeemed: Mapping[int, str]) -> dict[int, str]:
    """The public key of every place, once all stages have redeemed their tokens.

    Args:
        own: the key file of stage 0.
        redeemed: the public keys of all other stages.
    """
    publics = {HEAD if pair.place == "head" else 0: pair.public for pair in own.own}
    return {**publics, **redeemed}
