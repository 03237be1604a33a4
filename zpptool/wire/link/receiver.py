# SPDX-License-Identifier: Apache-2.0
"""The receiving end of a hop.

The invariant: `recv` returns the message that was due in the session that the sender has welcomed this end to, within
the limits, or raises an error that names what is wrong; either way the link is ready for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
import zmq

from zpptool.deadline import Deadline
from zpptool.places import place_name
from zpptool.wire.link.endpoint import Endpoint
from zpptool.wire.link.fragments import largest_part
from zpptool.wire.link.inbound import Inbound
from zpptool.wire.link_errors import LinkRefused, StaleEpoch, WireError, WireFault
from zpptool.wire.message.framing import Buffer, Kind, Limits, Message
from zpptool.wire.protocol.flow_control import Debt, Window
from zpptool.wire.protocol.handshake import of_other_runs, unfit
from zpptool.wire.protocol.link_messages import (
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
from zpptool.wire.protocol.sequence import SequenceCheck, SequenceError
from zpptool.wire.security.exposure import LinkSecurity, protect, require
from zpptool.wire.sockets import Context, check_endpoint

_DONTWAIT = int(zmq.DONTWAIT)
WORDS_LINGER_S = 0.5
"""How long a closing link goes on sending what was told to a sender that may be stopped."""
_LAST_LOOK_S = 0.01
"""libzmq tells of a connection's end a moment before it hands out what came last."""


class LinkReceiver(Endpoint):
    """The receiving end of a hop. It connects, and goes on trying until the other side is there."""

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
        shared_memory: bool = True,
        context: Context | None = None,
        safety: LinkSecurity | None = None,
        follows: bool = False,
    ) -> None:
        """Open the link.

        Args:
            endpoint: what the peer binds, `tcp://host:port` or `ipc:///path`.
            stage: the place this end belongs to, a stage index or `HEAD`.
            peer: the place that is to be at the other end.
            party: who this end is; an empty `run_id` is learnt from the sender's welcome, as it is by default.
            window: the most that the sender may have under way.
            limits: what this end accepts. A longer frame ends the connection before memory is taken for it.
            note: is told in words of a sender that was refused.
            shared_memory: whether a sender on this host may use shared memory for large frames.
            context: a ZeroMQ context to share; by default the link has its own, and an I/O thread with it.
            safety: the keys of both ends, without which an address that strangers can reach is refused.
            follows: whether this end goes with its sender into another run, and bears with one that was lost.

        Raises:
            ZppError: the endpoint cannot be used, or not without keys (exit 5).
        """
        self._follows = follows
        self._was_cut = False
        self._refusal: LinkRefused | None = None
        self._hold: str | None = None
        self._interrupted = False
        self._check: SequenceCheck | None = None
        self._debt = Debt(Window())
        self._stash: Message | WireFault | None = None
        self._behind: Sequence[Buffer] | None = None
        self._on_welcome: Callable[[str, int], None] = lambda _run, _epoch: None
        limits = limits or Limits()
        self._inbound = Inbound(limits, shared=shared_memory)
        super().__init__(
            zmq.DEALER,
            endpoint,
            stage=stage,
            peer=peer,
            bind=False,
            party=party or Party(stage),
            window=window,
            limits=limits,
            note=note,
            context=context,
            max_frame_bytes=largest_part(limits),
            safety=safety,
        )

    @property
    def state(self) -> str:
        """`waiting` to be welcomed, `connected`, `lost` or `refused`."""
        if self._refusal is not None:
            return "refused"
        if self._check is None:
            return "waiting"
        return "lost" if self._was_cut else "connected"

    @property
    def sequence(self) -> int:
        """The last message received in this epoch; -1 for none."""
        return self._check.due - 1 if self._check else -1

    def close(self, linger_s: float = WORDS_LINGER_S) -> None:
        """End the link. What was told goes on being sent for `linger_s` at most, if the sender is still there."""
        super().close(0.0 if self._was_cut else linger_s)

    def on_welcome(self, callback: Callable[[str, int], None]) -> None:
        """Have `callback` called with run and epoch whenever the sender welcomes this end, from any thread; it must
        not wait, nor use this link."""
        self._on_welcome = callback

    def tell(self, payload: bytes) -> None:
        """Pass a few bytes to the owner of the sending end (`LinkSender.on_told`), ahead of nothing and behind what was
        told before. Never waits; a sender that has not welcomed this end, has gone, or reads nothing, is not told."""
        self._post(lambda: self.connected and self._say(Told(payload)))

    def recv(self, timeout_s: float) -> Message:
        """The next message.

        Raises:
            LinkTimeout: none came before the deadline.
            PeerLost: the sender, who has sent something in this epoch, has gone, and nothing of it is left to read.
            LinkRefused: the sender will not have this end, or this end not that sender.
            SequenceError: it is not the one that was due. The link goes on behind it.
            StaleEpoch: it belongs to an epoch that is over.
            WireError: it cannot be right; it is dropped.
            LinkError: the link is closed.
        """
        deadline = Deadline(timeout_s)
        self._enter(deadline)
        try:
            while not self._look():
                if not deadline.remaining_ms():
                    due = self._check.due if self._check else 0
                    raise self.timed_out(deadline, f"send message {due}")
                self._wait(deadline)
            got, self._stash = self._stash, None
            if not isinstance(got, Message):
                raise got or self._refusal or self.lost()
            self._debt.take(len(got.header) + sum([frame.nbytes for frame in got.frames]))
            if self._debt.due:
                self._say_taken()
            return got
        finally:
            self._leave()

    def greet_again(self) -> None:
        """Forget that one side has refused this link, and greet anew. Never waits."""
        self._post(self._forget_refusal)

    def move(self, endpoint: str) -> None:
        """Look for the sender at another address from now on; what the one before had to say is over. Never waits.

        Raises:
            ZppError: (ADDRESS) it is no address, or one that strangers can reach, and there are no keys.
        """
        check_endpoint(endpoint, bind=False)
        require(endpoint, self._safety)
        self._post(lambda: self._move(endpoint))

    def interrupt(self) -> None:
        """Have the `poll` under way, or else the next one, return at once."""
        self._interrupted = True
        self._rouse()

    def poll(self, timeout_s: float) -> bool:
        """Whether there is a message, or a fault, before the deadline or an `interrupt`: something for `recv`."""
        deadline = Deadline(timeout_s)
        self._enter(deadline)
        try:
            while not self._look():
                if self._interrupted or not deadline.remaining_ms():
                    self._interrupted = False
                    return False
                self._wait(deadline)
            return True
        finally:
            self._leave()

    def _look(self) -> bool:
        """Whether there is something for `recv`. Words of the link are taken in on the way."""
        if self._chores:
            self._catch_up()
        if self._debt.due:
            self._say_taken()
        if self._stash is None:
            self._stash = self._next()
        if self._stash is None and self._is_over:
            self._socket.poll(int(_LAST_LOOK_S * 1000))
            self._stash = self._next()
        return self._stash is not None or self._is_over

    @property
    def _is_over(self) -> bool:
        """Whether nothing will come: one side was refused, or a sender that was heard has gone."""
        return self._refusal is not None or (self._was_cut and self._check is not None and self._check.due > 0)

    def _next(self) -> Message | WireFault | None:
        """The next message that is there, or what is wrong with it."""
        while (parts := self._arrived()) is not None:
            try:
                message = self._inbound.take(parts)
                if message is None:
                    continue
                if message.kind is not Kind.LINK:
                    return self._checked(message)
                self._take(decode_word(message.header), message)
            except WireError as error:
                return self.refusal(error)
            except WireFault as fault:
                return fault
        return None

    def _checked(self, message: Message) -> Message:
        if self._check is None:
            raise WireError("it came before a welcome; the peer is no link's other end.")
        if message.epoch != self.party.epoch:
            raise self._made(
                StaleEpoch, f"{place_name(self.stage).capitalize()} got a message of epoch {message.epoch} from "
                f"{self.peer} ({self.endpoint})",
            )  # fmt: skip
        fault = self._check.accept(message.session, message.sequence)
        if fault is not None:
            error = self._made(
                SequenceError,
                f"{place_name(self.stage).capitalize()} expected message {fault.expected} of {self.peer} "
                f"({self.endpoint}) and got {fault.got}: {fault.text}",
            )
            error.expected, error.got, error.received = fault.expected, fault.got, message
            raise error
        return message

    def _take(self, word: Word, message: Message) -> None:
        """Take in one word of the sender."""
        match word:
            case Welcome():
                self._be_welcomed(word, message.session)
            case Hold(reason=reason):
                self._hold = reason
            case Refused(reason=reason, plan=plan):
                self._refuse(f"{self.peer} refuses this link", reason, plan=plan)
            case Ping(at=at):
                self._say(Pong(at))
                if self._debt.untold:  # a link that is idle shows an empty queue
                    self._say_taken()

    def _be_welcomed(self, word: Welcome, session: int) -> None:
        theirs = word.party
        refused = unfit(theirs, self.party, self._awaited, follows=self._follows)
        same_run = not of_other_runs(theirs, self.party)
        if refused is None and same_run and self.sequence >= 0 and theirs.epoch == self.party.epoch:
            if self._follows:
                raise self.lost()
            refused = Refused(f"messages of epoch {theirs.epoch} came before; another epoch has to begin", plan=False)
        if refused is not None:
            self._say(refused)
            self._refuse(f"{self.peer} is refused", refused.reason, plan=refused.plan)
            return
        if same_run and theirs.epoch < self.party.epoch:
            raise self._made(
                StaleEpoch, f"{self.peer} welcomes to epoch {theirs.epoch} at {self.endpoint}, and that is over"
            )
        self.party = msgspec.structs.replace(self.party, run_id=theirs.run_id, epoch=theirs.epoch)
        self._was_cut = False
        self._check = SequenceCheck(session)
        self._debt = Debt(word.window)
        self._behind = None
        trouble = self._inbound.begin(word.offers)
        if self._inbound.shortcut is not None:
            self._inbound.shortcut.watch_with(self._watched)
        if trouble is not None:
            self._note(f"{self.peer} ({self.endpoint}) sends through the socket: {trouble}")
        self._hold = None
        self._on_welcome(theirs.run_id, theirs.epoch)

    def _move(self, endpoint: str) -> None:
        if endpoint == self.endpoint:
            return
        with suppress(zmq.ZMQError):  # nothing is left to end
            self._socket.disconnect(self.endpoint)
        self._inbound.end()
        self._behind = None
        self.endpoint = endpoint
        self._was_cut = self._check is not None
        self._keyed = protect(self._socket, endpoint, bind=False, safety=self._safety, refused=self._not_let_in)
        self._socket.connect(endpoint)

    def _forget_refusal(self) -> None:
        self._refusal = None
        self._reconnect()

    def _refuse(self, who: str, reason: str, *, plan: bool) -> None:
        self._refusal = self._refused_by(who, reason, plan=plan)
        self._turned_away(self._refusal.message)

    def _greet(self) -> None:
        self._was_cut = False
        if self._check and not self._check.due:
            self._check = None
        self._was_cut = self._check is not None
        self._say(Hello(self.party, self._window, self.limits, self._inbound.offers))

    def _cut(self, connection: int) -> None:
        self._was_cut = True
        self._hold = None

    def _say_taken(self) -> None:
        assert self._check is not None
        if self._say(Taken(self._debt.taken), self._check.session):
            self._debt.told()

    def _say(self, word: Word, session: int = 0) -> bool:
        """Whether ZeroMQ took the word; it does not when too many wait for a sender that reads nothing."""
        try:
            self._socket.send(self._packed(word, session), _DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def _dispose(self) -> None:
        if not self._closed:
            self._inbound.end()
        super()._dispose()

    def _how_it_stands(self) -> str:
        return f"it is connected, but {self._hold}" if self._hold else super()._how_it_stands()

    def _arrived(self) -> Sequence[Buffer] | None:
        """The parts of the next message that is there, in the order of sending; None for none.

        What is found at ZeroMQ may have been sent behind something that came by the shortcut meanwhile: it waits until
        there is nothing more. The other way round it cannot be, for the sender sees to that.
        """
        shortcut = self._inbound.shortcut
        if shortcut is None:
            return self._try_recv()
        if (short := shortcut.receive()) is not None:
            return (short,)
        parts, self._behind = self._behind or self._try_recv(), None
        if parts is not None and (short := shortcut.receive()) is not None:
            self._behind = parts
            return (short,)
        return parts

    def _try_recv(self) -> list[memoryview] | None:
        """The parts of one message, or None when none is there. Parts past the limit are dropped, all but one."""
        if not self._readable():  # cheaper than the error that says so
            return None
        part = self._socket.recv(_DONTWAIT, copy=False)
        self._torn = True
        parts = [part.buffer]
        while part.more:
            part = self._socket.recv(_DONTWAIT, copy=False)
            if len(parts) <= self.limits.max_frames + 1:
                parts.append(part.buffer)
        self._torn = False
        return parts
