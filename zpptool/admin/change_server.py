# SPDX-License-Identifier: Apache-2.0
"""Carries out planned changes at the head, one at a time, as they are asked for over a unix socket.

The invariant: the socket's file is its owner's alone (0600, in a directory that is so too), one request is read of each
who connects, within bounds, and a second change is refused by name while one is under way. Who asked and has gone wants
no more: the turn that has begun is brought to its end, and no other is begun.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from zpptool.admin import change_types as ch
from zpptool.admin.rolling import Ask, Came, Over, RollingPlan, react
from zpptool.admin.rules import (
    new_partition,
    refuse_another_plan,
    refuse_what_cannot_move,
    refuse_where_nothing_recovers,
)
from zpptool.admin.unix_server import UnixServer
from zpptool.deadline import Deadline
from zpptool.errors import ExitCode, ZppError, stage_error, usage_error
from zpptool.partition import Partition
from zpptool.ring.head.view import RingSnapshot
from zpptool.ring.messages import Leave, Seat, StageFacts

LOOK_S = 0.05
_READ_WITHIN_S = 5.0


class ChangingRing(Protocol):
    """What of a head is needed for planned changes."""

    @property
    def may_recover(self) -> bool:
        """Whether the ring outlives that a stage leaves."""
        ...

    def look(self) -> RingSnapshot:
        """How it stands now."""
        ...

    @property
    def plan_digest(self) -> str:
        """Of the plan that it was started from; empty for none."""
        ...

    def knocks(self, stage: int) -> int:
        """How often another process has asked for a stage's place."""
        ...

    def facts(self) -> tuple[StageFacts, ...]:
        """What the stages said of themselves when the roll was called last."""
        ...

    def prepare_partition(self, partition: Partition) -> tuple[int, ...]:
        """Which stages have to come again for the layers to lie so, having made all else ready for it.

        Raises:
            ZppError: it cannot be, and nothing is touched.
        """
        ...

    def ask_to_leave(self, leave: Leave) -> None:
        """Ask those to leave, and to come again unless their place moves."""
        ...


class ChangeServer:
    """Takes planned changes at `path` until it is closed.

    Args:
        path: the socket's file.
        ring: what is changed.

    Raises:
        OSError: the socket cannot be bound there.
    """

    def __init__(self, path: Path, ring: ChangingRing) -> None:
        self._ring = ring
        self._under_way = threading.Lock()
        self._what = ""
        self._server = UnixServer(path, self._start_answer, "changes")

    def close(self) -> None:
        """Take no more requests, and remove the file. A change that is under way sees that the ring is over."""
        self._server.close()

    def _start_answer(self, asking: socket.socket) -> None:
        threading.Thread(target=self._answer, args=(asking,), name="change", daemon=True).start()

    def _answer(self, asking: socket.socket) -> None:
        with asking, suppress(OSError):
            asking.settimeout(_READ_WITHIN_S)
            client = _Client(asking)
            try:
                client.tell(self._carried_out(client.request(), client))
            except ZppError as fault:
                client.tell(ch.outcome_of(fault))
            except Exception as cause:  # whoever asks is told, and not left to wait
                client.tell(ch.Outcome(f"the change has failed: {type(cause).__name__}: {cause}", ExitCode.FAILURE))
                raise

    def _carried_out(self, request: ch.Request, client: _Client) -> ch.Outcome:
        if not self._under_way.acquire(blocking=False):
            raise ZppError(
                f"another planned change is under way: {self._what}", "One at a time: ask again when it is over."
            )
        try:
            self._what = request.by
            refuse_where_nothing_recovers(self._ring.may_recover)
            seats = self._ring.look().seats
            if not seats:
                raise stage_error("the pipeline has not been whole yet", "Ask again when zpptool status says it is.")
            if isinstance(request, ch.Replace):
                refuse_what_cannot_move(request, len(seats), self._ring.plan_digest)
                self._await_newcomer(request, client)
                leave = Leave((), request.by, moved_to=request.address)
                self._take_turns(RollingPlan(((request.stage,),)), leave, client)
                return ch.Outcome(f"stage {request.stage} has moved to {request.address}")
            if isinstance(request, ch.Rebalance):
                return self._rebalanced(request, client)
            self._take_turns(RollingPlan(tuple((seat.stage,) for seat in seats)), Leave((), request.by), client)
            return ch.Outcome("every stage has come again")
        finally:
            self._under_way.release()

    def _await_newcomer(self, request: ch.Replace, client: _Client) -> None:
        """Return when another process asks for the place.

        Raises:
            ZppError: (STAGE) none does in time, or the ring is over; (FAILURE) nobody wants it any more.
        """
        before = self._ring.knocks(request.stage)
        client.tell(ch.Accepted(f"waiting {request.wait_s:g} s at most for the new stage {request.stage} to ask"))
        deadline = Deadline(request.wait_s)
        while self._ring.knocks(request.stage) <= before:
            look = self._look(client)
            if look.fault is not None:
                raise stage_error(f"the pipeline has ended: {look.fault.message}", look.fault.hint)
            if not look.wanted:
                raise ZppError("nobody listens any more, and nothing was changed")
            if not deadline.remaining_s():
                raise stage_error(
                    f"no other stage {request.stage} has asked for the place in {request.wait_s:g} s: nothing changed",
                    "See its log: does it reach the stage before it? Or give it more time with --wait.",
                )
            before = min(before, self._ring.knocks(request.stage))  # the one that counts may be another process by now
            time.sleep(LOOK_S)

    def _rebalanced(self, request: ch.Rebalance, client: _Client) -> ch.Outcome:
        """All stages of which something changes leave together: with layers twice or nowhere there is no ring."""
        refuse_another_plan(request.plan_digest, self._ring.plan_digest)
        facts = self._ring.facts()
        partition = new_partition(request.ranges, facts)
        places = self._ring.prepare_partition(partition)
        client.tell(ch.Accepted(f"{len(places)} of {len(facts)} stages come again with other layers"))
        plain = tuple((own.start, own.end) for own in partition)
        self._take_turns(RollingPlan((places,)), Leave((), request.by, partition=plain), client)
        return ch.Outcome(f"the layers are now {' '.join(map(str, partition))}")

    def _take_turns(self, turns: RollingPlan, leave: Leave, client: _Client) -> None:
        """See that stages leave in turn, told so with `leave`, until none is left.

        Raises:
            ZppError: (STAGE) the ring is over; (FAILURE) nobody wants the turns that are left.
        """
        began = 0.0
        while True:
            turns, action = react(turns, self._look(client))
            match action:
                case Ask(seats=seats):
                    began = time.monotonic()
                    client.tell(ch.Progress(f"{_named(seats)} is asked to leave"))
                    self._ring.ask_to_leave(msgspec.structs.replace(leave, seats=seats))
                case Came(now=now):
                    for answer in _came(now, time.monotonic() - began):
                        client.tell(answer)
                case Over(fault=None):
                    refuse_what_is_left(turns)
                    return
                case Over(fault=ZppError() as fault):
                    raise stage_error(f"the change has ended with the pipeline: {fault.message}", fault.hint)
                case None:
                    time.sleep(LOOK_S)

    def _look(self, client: _Client) -> RingSnapshot:
        return replace(self._ring.look(), wanted=not client.has_gone())


class _Client:
    """Whoever has asked; one that has gone is told nothing, and is no fault."""

    def __init__(self, asking: socket.socket) -> None:
        self._asking = asking
        self._gone = False

    def request(self) -> ch.Request:
        """What is asked.

        Raises:
            ZppError: (USAGE) it is none, or does not come in time.
        """
        said = b""
        try:
            while not said.endswith(b"\n"):
                piece = self._asking.recv(ch.MOST_BYTES)
                said += piece
                if not piece or len(said) > ch.MOST_BYTES:
                    raise usage_error("a planned change is asked for in one line of JSON")
            return ch.decode_request(said)
        except TimeoutError as late:
            raise usage_error(f"no request has come in {_READ_WITHIN_S:g} s") from late
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
            raise usage_error(f"the request cannot be read: {cause}") from cause

    def has_gone(self) -> bool:
        """Whether it listens no more."""
        if not self._gone and select.select([self._asking], [], [], 0)[0]:
            with suppress(BlockingIOError):
                self._gone = not self._asking.recv(1, socket.MSG_DONTWAIT)
        return self._gone

    def tell(self, answer: ch.Answer) -> None:
        """Send an answer."""
        try:
            self._asking.sendall(ch.encode_line(answer))
        except OSError:
            self._gone = True


def _named(seats: tuple[Seat, ...]) -> str:
    return ", ".join(f"stage {seat.stage} ({seat.host}, pid {seat.pid})" for seat in seats)


def _came(now: tuple[Seat, ...], took_s: float) -> Iterator[ch.Progress]:
    for seat in now:
        told = f"stage {seat.stage} is back after {took_s:.1f} s: {seat.host}, pid {seat.pid}"
        yield ch.Progress(told, seat.stage, seat.pid, took_s)


def refuse_what_is_left(turns: RollingPlan) -> None:
    """Say what turns were not taken because nobody wanted them any more.

    Raises:
        ZppError: (FAILURE) there are some.
    """
    left = [str(place) for group in turns.groups for place in group]
    if left:
        raise ZppError(f"nobody listens any more: stage {', '.join(left)} is left as it was", "Ask again for the rest.")
