# SPDX-License-Identifier: Apache-2.0
"""The side of a sending link that deals with whoever comes: greets, welcomes, holds, refuses, and hears what is said.

The invariant: at most one peer is welcome, the one this place awaits, in the run and epoch that have begun; what
anybody else says changes nothing but the count of those who were refused.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence

import msgspec
import zmq

from zpptool.places import place_name
from zpptool.wire.compression.adaptive import Gauge, WireCodec
from zpptool.wire.compression.bandwidth import delivery_rate
from zpptool.wire.link.counters import Tally
from zpptool.wire.link.endpoint import Endpoint
from zpptool.wire.link.outbound import Outbound
from zpptool.wire.link.session import Guest, Session
from zpptool.wire.link_errors import LinkRefused, WireError
from zpptool.wire.message.framing import Buffer, Limits, decode
from zpptool.wire.protocol.flow_control import Credit, Window
from zpptool.wire.protocol.handshake import LinkState, judge
from zpptool.wire.protocol.link_messages import (
    WORD_LIMITS,
    Hello,
    Hold,
    Party,
    Ping,
    Pong,
    Refused,
    Taken,
    Told,
    Welcome,
    Word,
    decode_word,
)
from zpptool.wire.security.exposure import LinkSecurity
from zpptool.wire.sockets import Context

_HELD = 8


class LinkAdmission(Endpoint):
    """An end that binds and lets one peer in. What is sent to the peer is `LinkSender`'s.

    Attributes:
        tally: what it has done so far.
        knocks: how often somebody was turned away who would have been welcome, had another one not been there.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        stage: int,
        peer: int,
        party: Party | None = None,
        window: Window | None = None,
        limits: Limits | None = None,
        note: Callable[[str], None] | None = None,
        codec: WireCodec = WireCodec.NONE,
        shared_memory: bool = True,
        context: Context | None = None,
        safety: LinkSecurity | None = None,
        follows: bool = False,
    ) -> None:
        """Open the link.

        Args:
            endpoint: `tcp://host:port` (`*` for any free port) or `ipc:///path`.
            stage: the place this end belongs to, a stage index or `HEAD`.
            peer: the one place whose greeting is welcome.
            party: who this end is; while its `run_id` is empty everybody is held until `begin`. By default a run
                of this link alone.
            window: the most that is ever under way, if the peer allows as much.
            limits: what the peer will accept, if it says nothing less; larger messages are refused here.
            note: is told in words of peers that were refused.
            codec: whether large messages are compressed, and where.
            shared_memory: whether a peer on this host may be sent large frames through shared memory.
            context: a ZeroMQ context to share; by default the link has its own, and an I/O thread with it.
            safety: the keys of both ends, without which an address that strangers can reach is refused.
            follows: whether a peer that took part in another run comes over to this one.

        Raises:
            ZppError: the endpoint cannot be used, or not without keys (exit 5).
        """
        self._session: Session | None = None
        self._follows = follows
        self._credit = Credit(Window())
        self._was_lost = False
        self._refusal: LinkRefused | None = None
        self._held: dict[bytes, Guest] = {}
        self._accepted = limits or Limits()
        self._gauge = Gauge(codec)
        self._shared_memory = shared_memory
        self.knocks = 0
        self._on_told: Callable[[bytes], None] = lambda _payload: None
        self._on_lost: Callable[[], None] = lambda: None
        self.tally = Tally()
        super().__init__(
            zmq.ROUTER,
            endpoint,
            stage=stage,
            peer=peer,
            bind=True,
            party=party or Party(stage, run_id=secrets.token_hex(8)),
            window=window,
            limits=limits,
            note=note,
            context=context,
            safety=safety,
            max_frame_bytes=WORD_LIMITS.max_frame_bytes,
        )

    @property
    def state(self) -> str:
        """`waiting` for its peer, `connected` or `lost`."""
        return "lost" if self._was_lost else "connected" if self._session else "waiting"

    def begin(self, run_id: str, epoch: int) -> None:
        """Begin a run, or a later epoch of it: the peer is welcomed (again), and messages count from 0.

        Who greeted too early is judged anew. An epoch that has begun already is no fault. Never waits.
        """
        self._post(lambda: self._begin(run_id, epoch))

    def on_told(self, callback: Callable[[bytes], None]) -> None:
        """Have `callback` called with what the receiver's owner tells (`LinkReceiver.tell`), from any thread; it must
        not
        wait, nor use this link."""
        self._on_told = callback

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the peer has gone who was sent something, from any thread; it must not wait, nor
        use this link."""
        self._on_lost = callback

    def ping(self) -> None:
        """Ask the peer how long a word takes; the tally says so later. A peer that has gone is noticed. Never waits."""
        self._post(self._probe)

    def _how_it_stands(self) -> str:
        if self._held and not self._session:
            return "it is connected and waits for the run to begin here"
        return super()._how_it_stands()

    def _hear(self) -> None:
        while self._readable():
            identity, *parts = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            connection = parts[0].get(zmq.SRCFD) if parts else -1
            user = parts[0].get("User-Id") if parts and self._keyed else None
            self._take(identity.bytes, int(connection), user, [part.buffer for part in parts])

    def _take(self, identity: bytes, connection: int, user: object, parts: Sequence[Buffer]) -> None:
        """Take in one word. `user` is whose key it came with; None where there are no keys."""
        try:
            message = decode(parts, WORD_LIMITS)
            word = decode_word(message.header)
        except WireError as error:
            self._turn_away(identity, Refused(error.message, plan=False))
            return
        session = self._session
        if isinstance(word, Hello) and user not in (None, place_name(word.party.stage)):
            said = place_name(word.party.stage)
            self._turn_away(identity, Refused(f"it has the key of {user} and calls itself {said}", plan=False))
        elif isinstance(word, Hello):
            self._receive(Guest(identity, connection, word))
        elif session and identity == session.guest.identity:
            match word:
                case Taken(count=count):
                    if message.session == session.number:
                        self._be_paid(identity, count)
                case Pong(at=at):
                    self.tally.round_trip(time.monotonic() - at)
                case Told(payload=payload):
                    self._on_told(payload)
                case Refused(reason=reason, plan=plan):
                    self._refusal = self._refused_by(f"{self.peer} refuses this link", reason, plan=plan)
                    self._note(self._refusal.message)

    def _be_paid(self, identity: bytes, count: int) -> None:
        """The peer says that it has taken so many messages of the session."""
        before = self._credit.taken, self._credit.pending_bytes
        if self._credit.receive(count):
            self.tally.taken(self._credit.taken - before[0], before[1] - self._credit.pending_bytes)
        else:
            self._turn_away(identity, Refused(f"{count} messages were never sent", plan=False))
            self._end_session()

    def _receive(self, guest: Guest) -> None:
        """Welcome, hold or refuse somebody who greets."""
        self._probe()
        if self._session and self._session.guest.identity == guest.identity:
            return  # he greets twice where the connection broke before his greeting had left
        standing = LinkState(self._session is not None, self._credit.sent > 0, self._follows)
        theirs = guest.hello.party
        answer = judge(theirs, self.party, self._awaited, standing)
        match answer:
            case None:
                self._welcome(guest)
            case Hold():
                if self._say(guest, answer) and len(self._held) < _HELD:
                    self._held[guest.identity] = guest
            case Refused(reason=reason, plan=plan):
                self._turn_away(guest.identity, answer)
                vacant = standing._replace(taken=False)
                if standing.taken and not isinstance(judge(theirs, self.party, self._awaited, vacant), Refused):
                    self.knocks += 1
                if plan and theirs.stage == self._awaited and not standing.taken and not standing.spent:
                    self._refusal = self._refused_by(f"{self.peer} is refused", reason, plan=plan)

    def _welcome(self, guest: Guest) -> None:
        """Begin a session with this guest."""
        offers = guest.hello.offers
        outbound = Outbound(
            offers, self._gauge, lambda: delivery_rate(guest.connection), shared=self._shared_memory
        )  # fmt: skip
        session = Session(guest, secrets.randbits(32), outbound)
        window = self._window.within(guest.hello.window)
        if not self._say(guest, Welcome(self.party, window, outbound.offers), session.number):
            outbound.close()
            return
        self._session = session
        self.tally.sessions += 1
        self._was_lost = False
        self._refusal = None
        self._credit = Credit(window)
        self._accepted = self.limits.within(guest.hello.limits)

    def _turn_away(self, identity: bytes, answer: Refused) -> None:
        self._turned_away(f"somebody was refused: {answer.reason}")
        self._send_word(identity, answer)

    def _begin(self, run_id: str, epoch: int) -> None:
        if self.party.run_id == run_id and epoch <= self.party.epoch:
            return
        self.party = msgspec.structs.replace(self.party, run_id=run_id, epoch=epoch)
        if self._session:
            self._held = {self._session.guest.identity: self._session.guest, **self._held}
            self._session.outbound.close()
        self._session = None
        self._was_lost = False
        self._credit = Credit(Window())
        self._judge_held()

    def _judge_held(self) -> None:
        """Judge again whoever waits."""
        held, self._held = self._held, {}
        for guest in held.values():
            self._receive(guest)

    def _end_session(self) -> None:
        """The welcome peer has gone. If he was sent nothing yet, nothing is lost, and another may come in his place."""
        ended = self._session
        self._hear()  # what he said last
        if ended is not None and self._session is ended:
            ended.outbound.close()
            self._session = None
            self._was_lost = self._credit.sent > 0
            if self._was_lost:
                self.last_error = self.lost().message
                self._on_lost()

    def _dispose(self) -> None:
        if self._session and not self._closed:
            self._session.outbound.close()
        super()._dispose()

    def _cut(self, connection: int) -> None:
        if self._session and self._session.guest.connection == connection and not self._probe():
            self._attendant.suspect()
        if not self._session:
            self._judge_held()

    def _probe(self) -> bool:
        """Whether nobody is welcome any more. The number of a connection that has ended may be another one's by now,
        so libzmq is asked; and it may hand the end out a moment after it has told of it, so it may have to be asked
        again."""
        if self._session:
            self._readable()  # or libzmq may not have looked
            if not self._say(self._session.guest, Ping(time.monotonic())):
                self._end_session()
        return self._session is None

    def _say(self, guest: Guest, word: Word, session: int = 0) -> bool:
        return self._send_word(guest.identity, word, session)

    def _send_word(self, identity: bytes, word: Word, session: int = 0) -> bool:
        """Whether ZeroMQ took the word; it does not when that peer has gone, or reads nothing."""
        try:
            self._socket.send_multipart([identity, self._packed(word, session)], zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True
