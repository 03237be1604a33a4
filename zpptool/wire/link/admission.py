# SPDX-License-Identifier: Apache-2.0
"""Which receiver a sending link serves: it welcomes, holds or refuses those that greet, and keeps the session.

The invariant: at most one receiver is welcome, the one at the place that the link is meant for, in the run and epoch
that have begun. Any other changes nothing but the count of refusals.
"""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Protocol

import msgspec

from zpptool.wire.compression.adaptive import AdaptiveCompression
from zpptool.wire.compression.bandwidth import delivery_rate
from zpptool.wire.link.counters import LinkCounters
from zpptool.wire.link.link_faults import LinkFaults
from zpptool.wire.link.link_options import LinkOptions
from zpptool.wire.link.outbound import Outbound
from zpptool.wire.link.session import Candidate, Session
from zpptool.wire.link_errors import LinkRefused
from zpptool.wire.protocol.flow_control import Credit, Window
from zpptool.wire.protocol.handshake import LinkState, judge
from zpptool.wire.protocol.link_messages import Hold, LinkMessage, Party, Ping, Refused, Welcome
from zpptool.wire.sealed.sender import SealedSender

_HELD = 8
_MAX_SEALED_FAILURES = 3
"""One is counted when the receiver's process dies in the middle of a message; more mean that the network cuts lanes."""


class AdmittingLink(Protocol):
    """What the admission needs of the link it decides for."""

    peer: str
    party: Party
    options: LinkOptions
    counters: LinkCounters
    _awaited: int
    _keyed: bool

    @property
    def faults(self) -> LinkFaults:
        """The errors of the link as it is now."""

    def _readable(self) -> bool:
        """Whether a message waits in the socket; libzmq processes its pending events."""

    def _read_link_messages(self) -> None:
        """Process the link messages that are in the socket."""

    def _send_link_message(self, identity: bytes, message: LinkMessage, session: int = 0) -> bool:
        """Send a link message to one connection; False when it is gone, or reads nothing."""

    def _record_refusal(self, text: str) -> None:
        """Count and log a refusal."""

    def _open_sealed(self) -> SealedSender:
        """The sender's end of a sealed channel; raises OSError where there can be none."""

    def _on_peer_lost(self) -> None:
        """Report that the receiver of messages of this epoch is lost."""


class LinkAdmission:
    """The admission of one sending link. All methods are called in the link's turn.

    Args:
        link: the link it decides for.
        options: of the link.

    Attributes:
        session: of the receiver that is welcome; None while there is none.
        credit: the flow control of the epoch's session.
        limits: what the receiver accepts of one message, within the sender's own limits.
        was_lost: whether the epoch's session has ended after a message was sent in it.
        refusal: the error of a receiver that was started with another plan, or of one that refuses this link.
    """

    def __init__(self, link: AdmittingLink, options: LinkOptions) -> None:
        self._link = link
        self._options = options
        self._compression = AdaptiveCompression(options.codec)
        self._held: dict[bytes, Candidate] = {}
        self.session: Session | None = None
        self.credit = Credit(Window())
        self.limits = options.limits
        self.was_lost = False
        self.refusal: LinkRefused | None = None
        self._sealed_failures = 0

    @property
    def holds_receivers(self) -> bool:
        """Whether no receiver is welcome yet, and one is held."""
        return bool(self._held) and self.session is None

    def on_hello(self, candidate: Candidate) -> None:
        """Welcome, hold or refuse a receiver that greets."""
        self.probe()
        if self.session and self.session.receiver.identity == candidate.identity:
            return  # it greets twice when the connection broke before its greeting was sent
        link = self._link
        state = LinkState(self.session is not None, self.credit.sent > 0, self._options.follows)
        theirs = candidate.hello.party
        answer = judge(theirs, link.party, link._awaited, state)
        match answer:
            case None:
                self._welcome(candidate)
            case Hold():
                if link._send_link_message(candidate.identity, answer) and len(self._held) < _HELD:
                    self._held[candidate.identity] = candidate
            case Refused(reason=reason, plan=plan):
                self.refuse(candidate.identity, answer)
                vacant = state._replace(taken=False)
                if state.taken and not isinstance(judge(theirs, link.party, link._awaited, vacant), Refused):
                    link.counters.knocks += 1
                if plan and theirs.stage == link._awaited and not state.taken and not state.spent:
                    self.refusal = link.faults.refused(f"{link.peer} is refused", reason, plan=plan)

    def on_taken(self, identity: bytes, count: int) -> None:
        """The receiver acknowledges the first `count` messages of its session."""
        credit = self.credit
        taken, pending_bytes = credit.taken, credit.pending_bytes
        if credit.receive(count):
            self._link.counters.taken(credit.taken - taken, pending_bytes - credit.pending_bytes)
        else:
            self.refuse(identity, Refused(f"{count} messages were never sent", plan=False))
            self.end_session()

    def refuse(self, identity: bytes, answer: Refused) -> None:
        """Refuse a connection, and say why."""
        self._link._record_refusal(f"a receiver was refused: {answer.reason}")
        self._link._send_link_message(identity, answer)

    def begin(self, run_id: str, epoch: int) -> None:
        """Begin a run or a later epoch of it, and admit those that were held for it."""
        party = self._link.party
        if party.run_id == run_id and epoch <= party.epoch:
            return
        self._link.party = msgspec.structs.replace(party, run_id=run_id, epoch=epoch)
        if self.session:
            receiver = self.session.receiver
            self._held = {receiver.identity: receiver, **self._held}
            self.session.outbound.close()
        self.session = None
        self.was_lost = False
        self.credit = Credit(Window())
        self._judge_held()

    def end_session(self) -> None:
        """The welcome receiver is gone. If it was sent no message yet, nothing is lost and another may replace it."""
        ended = self.session
        self._link._read_link_messages()  # what it sent last
        if ended is not None and self.session is ended:
            ended.outbound.close()
            self.session = None
            self.was_lost = self.credit.sent > 0
            if self.was_lost:
                self._link._on_peer_lost()

    def on_disconnected(self, connection: int) -> bool:
        """Handle the end of a connection; whether its receiver may be gone although libzmq still has its address."""
        undecided = self.session is not None and self.session.receiver.connection == connection and not self.probe()
        if not self.session:
            self._judge_held()
        return undecided

    def on_sealed_lost(self) -> None:
        """The sealed channel of the session has failed: its messages are lost, though the receiver may still be there.

        The receiver is judged as if it had just greeted. After some failures the link has no such channel any more.
        """
        session = self.session
        if session is not None and session.outbound.has_failed:
            self._sealed_failures += 1
            self.end_session()
            if self.session is None:
                self.on_hello(session.receiver)

    def probe(self) -> bool:
        """Whether no receiver is welcome any more.

        The descriptor of a connection that has ended may already be another connection's, so libzmq itself is asked, by
        a ping. It may report the end a moment before it drops the address, so it may have to be asked again.
        """
        if self.session:
            self._link._readable()  # else libzmq may not have processed the end of the connection
            if not self._link._send_link_message(self.session.receiver.identity, Ping(time.monotonic())):
                self.end_session()
        return self.session is None

    def close(self) -> None:
        """Release the side channels of the session."""
        if self.session:
            self.session.outbound.close()

    def _welcome(self, candidate: Candidate) -> None:
        """Begin a session with this receiver."""
        outbound = Outbound(
            candidate.hello.offers,
            self._compression,
            partial(delivery_rate, candidate.connection),
            shared=self._options.shared_memory,
            open_sealed=self._link._open_sealed if self._may_seal else None,
        )
        session = Session(candidate, secrets.randbits(32), outbound)
        window = self._options.window.within(candidate.hello.window)
        welcome = Welcome(self._link.party, window, outbound.offers)
        if not self._link._send_link_message(candidate.identity, welcome, session.number):
            outbound.close()
            return
        self.session = session
        self._link.counters.sessions += 1
        self.was_lost = False
        self.refusal = None
        self.credit = Credit(window)
        self.limits = self._options.limits.within(candidate.hello.limits)

    @property
    def _may_seal(self) -> bool:
        return self._link._keyed and self._options.sealed and self._sealed_failures < _MAX_SEALED_FAILURES

    def _judge_held(self) -> None:
        """Decide again about those that are held."""
        held, self._held = self._held, {}
        for candidate in held.values():
            self.on_hello(candidate)
