# SPDX-License-Identifier: Apache-2.0
"""A stage's side of the protocol: it asks the listener, again and again, until it is refused or knows its neighbours.

The request is the same each time, so neither a lost answer nor a listener that starts later matters. The stage's own
key is the key of the connection: CURVE proves that the stage has it, and the proof in the request that it was invited.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from zpptool.errors import ZppError, invalid_error
from zpptool.invites.invite import Invite
from zpptool.invites.messages import MAX_ANSWER_BYTES, VERSION, Answer, Redeem, Verdict
from zpptool.invites.proof import proof_of
from zpptool.wire.security.key_files import KeyPair
from zpptool.wire.sockets import attach, make_socket

ASK_S = 1.0
"""Seconds between two requests."""
ANSWER_S = 5.0
"""Seconds to wait for an answer before the request is repeated."""
SOON_S = 1.0
MOST_SOON = 5
"""A listener with another key closes the connection at once; so often, and it is not the one of this invite."""
REPORT_S = 15.0
_MONITORED = zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
_logger = logging.getLogger(__name__)


class Redeemer:
    """The connection of one stage to the listener. Use as a context manager.

    Args:
        invite: of the stage.
        own: its keys.
    """

    def __init__(self, invite: Invite, own: KeyPair) -> None:
        self._invite = invite
        terms, stage = invite.terms, invite.stage
        self._request = Redeem(
            version=VERSION,
            plan=terms.plan,
            stage=stage,
            proof=proof_of(invite.secret, terms, stage, own.public),
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = make_socket(self._context, zmq.DEALER, to_send=1, to_receive=1, max_frame_bytes=MAX_ANSWER_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.CURVE_SERVERKEY, terms.listener.encode())
        self._socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())
        self._events = self._socket.get_monitor_socket(_MONITORED)
        self._connected_at = 0.0
        self._closed_soon = 0
        attach(self._socket, terms.address, bind=False)

    def __enter__(self) -> Redeemer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.destroy(linger=0)

    def ask(self, *, has_joined: bool = False) -> Answer | None:
        """Ask once; None if there is no answer within `ANSWER_S`.

        Args:
            has_joined: whether the stage has stored its neighbours' keys.

        Raises:
            ZppError: (INVALID) the stage is refused, or this is not the listener of its invite.
        """
        while self._socket.poll(0):
            self._socket.recv(zmq.NOBLOCK)  # the late answer to an earlier request
        request = msgspec.structs.replace(self._request, has_joined=has_joined)
        deadline = time.monotonic() + ANSWER_S
        if not self._socket.poll(int(ANSWER_S * 1000), zmq.POLLOUT):
            self._watch()
            return None
        self._watch()
        self._socket.send(msgspec.msgpack.encode(request), zmq.NOBLOCK)
        if not self._socket.poll(max(int((deadline - time.monotonic()) * 1000), 1)):
            return None
        try:
            answer = msgspec.msgpack.decode(self._socket.recv(zmq.NOBLOCK), type=Answer)
        except (msgspec.MsgspecError, RecursionError):
            raise invalid_error(
                f"the listener at {self._invite.terms.address} answers in another form than this zpptool reads",
                "Use the same release of zpptool on every machine.",
            ) from None
        if answer.verdict is Verdict.REFUSED:
            raise invalid_error(f"stage {self._invite.stage} is refused: {answer.reason}")
        return answer

    def _watch(self) -> None:
        """Notice a listener that closes every connection at once: it has another key.

        Raises:
            ZppError: (INVALID) it has done so `MOST_SOON` times in a row.
        """
        while self._events.poll(0):
            event = parse_monitor_message(self._events.recv_multipart())["event"]
            if event == zmq.EVENT_CONNECTED:
                self._connected_at = time.monotonic()
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._closed_soon = 0
            elif time.monotonic() - self._connected_at < SOON_S + ANSWER_S:
                self._closed_soon += 1
        if self._closed_soon >= MOST_SOON:
            raise invalid_error(
                f"what listens at {self._invite.terms.address} does not have the key of this invite",
                "Start stage 0 with its invite of the same zpptool plan --invite; or another program has the port.",
            )


def redeem(redeemer: Redeemer, invite: Invite, is_stopped: Callable[[], bool]) -> Answer | None:
    """Ask until every stage has redeemed its token: the answer with the keys; None where the user stops it.

    Args:
        redeemer: the connection.
        invite: of the stage.
        is_stopped: whether the user has asked for the end.

    Raises:
        ZppError: (INVALID) the stage is refused, or its invite expires meanwhile.
    """
    reported, before = 0.0, ""
    while not is_stopped():
        answer = redeemer.ask()
        if answer is not None and answer.verdict is Verdict.COMPLETE:
            return answer
        now = f"no answer from {invite.terms.address}: is stage 0 started, and is that port open?"
        if answer is not None:
            now = f"joined; waiting for stage {', '.join(map(str, answer.missing))} to join"
        if now != before or time.monotonic() - reported > REPORT_S:
            _logger.info("%s", now)
            reported, before = time.monotonic(), now
        try:
            invite.refuse_expired(time.time())
        except ZppError as fault:
            raise invalid_error(f"{fault.message}; {now}", fault.hint) from None
        time.sleep(ASK_S)
    return None
