# SPDX-License-Identifier: Apache-2.0
"""Where invited stages redeem their tokens: a process beside stage 0, until all have joined or the invites expire.

Started as `python -m zpptool.invites.listener DIRECTORY`. Anybody may connect to its port, so everything is bounded:
only a client that knows the listener's public key, which is in the tokens alone, completes the CURVE handshake; a
connection that does not within `HANDSHAKE_MS` is closed; a frame has at most `MAX_REQUEST_BYTES`; and the process may
hold `MAX_FILES` files, so strangers can hold no more connections than that, and take nothing from the stage, which is
another process.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from pathlib import Path

import msgspec
import zmq

from zpptool.errors import ZppError, invalid_error, stage_error
from zpptool.invites.desk import Desk, all_publics
from zpptool.invites.invite import Invite, read_invite
from zpptool.invites.ledger import Ledger
from zpptool.invites.messages import MAX_REQUEST_BYTES, Redeem, Verdict
from zpptool.invites.proof import Terms
from zpptool.invites.state import INVITE_FILE, StageState
from zpptool.process.child import run_child
from zpptool.wire.security.key_files import peers_of
from zpptool.wire.security.zap import admission, curve_key, serve_zap
from zpptool.wire.sockets import Context, Socket, attach, make_socket

HANDSHAKE_MS = 3000
MAX_FILES = 64
QUEUED = 16
_POLL_MS = 500
_logger = logging.getLogger("zpptool.invites.listener")  # `__name__` is `__main__` here


def serve(invite: Invite) -> None:
    """Answer stages until all have stored the keys of their neighbours, or the invites have expired.

    Args:
        invite: stage 0's.

    Raises:
        ZppError: (STAGE) the invites expired before every stage had joined; (ADDRESS) the port cannot be bound.
    """
    state = StageState(invite)
    own = state.own_keys()
    plan = state.plan_file.read_bytes()
    context: Context = zmq.Context()
    try:
        with Ledger(state.directory) as ledger, _listening(context, invite) as socket:
            _answer_until_done(socket, Desk(invite, plan, own, ledger), ledger, state, invite.terms)
    finally:
        context.term()  # not destroy, which would close the socket that the ZAP thread is using


def _answer_until_done(socket: Socket, desk: Desk, ledger: Ledger, state: StageState, terms: Terms) -> None:
    seen = set(ledger.redeemed)
    _logger.info("stages can join at %s; missing: %s", terms.address, _stages(desk.missing))
    while not desk.is_done:
        if time.time() >= terms.expires:
            if not desk.missing:
                return
            raise stage_error(
                f"the invites have expired, and no invite was redeemed for {_stages(desk.missing)}",
                "Make new ones with zpptool plan --invite, for every stage.",
            )
        if socket.poll(_POLL_MS):
            _answer_one(socket, desk)
        for stage in sorted(ledger.redeemed.keys() - seen):
            _logger.info("stage %d has joined; missing: %s", stage, _stages(desk.missing))
            seen.add(stage)
        if not desk.missing and not state.key_file.is_file():
            _keep_keys(state, ledger)


def _listening(context: Context, invite: Invite) -> Socket:
    """The socket, bound; every CURVE client is admitted, marked with its key."""
    assert invite.head is not None
    serve_zap(context, lambda request: admission(request, curve_key(request)))
    socket = make_socket(context, zmq.ROUTER, to_send=QUEUED, to_receive=QUEUED, max_frame_bytes=MAX_REQUEST_BYTES)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, invite.head.listener_secret.encode())
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.BACKLOG, QUEUED)
    try:
        attach(socket, invite.terms.address, bind=True)
    except ZppError:
        socket.close()
        raise
    return socket


def _answer_one(socket: Socket, desk: Desk) -> None:
    """Receive one request and answer it, unless it is none, or could not be recorded: the stage then asks again."""
    parts = socket.recv_multipart(zmq.NOBLOCK, copy=False)
    try:
        public = str(parts[-1].get("User-Id"))
        request = msgspec.msgpack.decode(parts[-1].buffer, type=Redeem)
        if len(parts) != 2:
            return
        answer = desk.answer(request, public, time.time())
        if answer.verdict is Verdict.REFUSED:
            _logger.warning("refused stage %d: %s", request.stage, answer.reason)
        socket.send_multipart([parts[0].bytes, msgspec.msgpack.encode(answer)], zmq.NOBLOCK)
    except (msgspec.MsgspecError, RecursionError, zmq.ZMQError):
        return  # the connection has ended, or sends what is no request
    except OSError as cause:
        _logger.error("a stage could not be recorded, and is not answered: %s", cause.strerror)


def _keep_keys(state: StageState, ledger: Ledger) -> None:
    """Write stage 0's key file, by which the waiting command learns that no stage is missing."""
    try:
        own = state.own_keys()
        peers = peers_of(0, all_publics(own, ledger.redeemed), own.num_stages)
        state.keep_keys(own, own.pipeline, own.created, peers)
    except (OSError, ZppError) as cause:  # strangers may hold every file descriptor for now: it is tried again
        _logger.warning("the key file cannot be written yet: %s", cause)


def _stages(stages: tuple[int, ...]) -> str:
    if not stages:
        return "none"
    return f"stage{'s' if len(stages) > 1 else ''} {', '.join(map(str, stages))}"


def _main() -> None:
    try:
        directory = Path(sys.argv[1])
        text = (directory / INVITE_FILE).read_text()
    except (IndexError, OSError) as cause:
        raise invalid_error(f"this module is started by zpptool with a directory ({cause})") from cause
    soft = min(MAX_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
    serve(read_invite(text))


if __name__ == "__main__":
    run_child("invites", _main)
