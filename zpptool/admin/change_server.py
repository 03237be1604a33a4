# SPDX-License-Identifier: Apache-2.0
"""Carries out planned changes at the head, one at a time, as they are requested over a unix socket.

The invariant: only the owner of the socket's file can connect (0600, in a private directory), one bounded request is
read from each client, and a second change is refused by name while one is under way. When a client disconnects, the
step that has begun is completed, and no other is begun.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from zpptool.admin.change_connection import ChangeConnection
from zpptool.admin.change_types import Accepted, Outcome, Progress, Rebalance, Replace, Request, outcome_of
from zpptool.admin.rolling import Ask, Came, Over, RollingPlan, react
from zpptool.admin.rules import (
    new_partition,
    refuse_another_plan,
    refuse_what_cannot_move,
    refuse_where_nothing_recovers,
)
from zpptool.admin.unix_server import UnixServer
from zpptool.deadline import Deadline
from zpptool.errors import ExitCode, ZppError, stage_error
from zpptool.partition import Partition
from zpptool.ring.head.view import RingSnapshot
from zpptool.ring.messages import Leave, Seat, StageFacts

POLL_S = 0.05
"""How often the ring is looked at while a change is under way, in seconds."""


class ChangingRing(Protocol):
    """What planned changes need of a head's node."""

    @property
    def may_recover(self) -> bool:
        """Whether the ring survives that a stage leaves."""
        ...

    def look(self) -> RingSnapshot:
        """The ring now."""
        ...

    @property
    def plan_digest(self) -> str:
        """Of the plan that the pipeline was started from; empty for none."""
        ...

    def knocks(self, stage: int) -> int:
        """How often another process has asked for a stage's place."""
        ...

    def facts(self) -> tuple[StageFacts, ...]:
        """What the stages reported about themselves in the last roll call."""
        ...

    def prepare_partition(self, partition: Partition) -> tuple[int, ...]:
        """Prepare everything but the stages for these layer ranges; returns the stages that have to restart.

        Raises:
            ZppError: the model cannot be divided so, and nothing was changed.
        """
        ...

    def ask_to_leave(self, leave: Leave) -> None:
        """Ask processes to leave, and to restart unless their place moves."""
        ...


class ChangeServer:
    """Accepts planned changes at `path` until it is closed.

    Args:
        path: the socket's file.
        ring: what is changed.

    Raises:
        OSError: the socket cannot be bound there.
    """

    def __init__(self, path: Path, ring: ChangingRing) -> None:
        self._ring = ring
        self._under_way = threading.Lock()
        self._requested_by = ""
        self._server = UnixServer(path, self._start_answer, "changes")

    def close(self) -> None:
        """Accept no more requests, and remove the file. A change under way ends when the ring does."""
        self._server.close()

    def _start_answer(self, connection: socket.socket) -> None:
        threading.Thread(target=self._answer, args=(connection,), name="change", daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            client = ChangeConnection(connection)
            try:
                client.send(self._carry_out(client.request(), client))
            except ZppError as fault:
                client.send(outcome_of(fault))
            except Exception as cause:  # the client waits for an outcome, whatever it is
                client.send(Outcome(f"the change has failed: {type(cause).__name__}: {cause}", ExitCode.FAILURE))
                raise

    def _carry_out(self, request: Request, client: ChangeConnection) -> Outcome:
        if not self._under_way.acquire(blocking=False):
            raise ZppError(
                f"another planned change is under way: {self._requested_by}",
                "One at a time: ask again when it is over.",
            )
        try:
            self._requested_by = request.by
            refuse_where_nothing_recovers(self._ring.may_recover)
            seats = self._ring.look().seats
            if not seats:
                raise stage_error(
                    "the pipeline has not been whole yet", "Ask again when zpptool status shows it ready."
                )
            if isinstance(request, Replace):
                return self._replace(request, len(seats), client)
            if isinstance(request, Rebalance):
                return self._rebalance(request, client)
            self._roll(RollingPlan(tuple((seat.stage,) for seat in seats)), Leave((), request.by), client)
            return Outcome("every stage has come again")
        finally:
            self._under_way.release()

    def _replace(self, request: Replace, num_stages: int, client: ChangeConnection) -> Outcome:
        """Move a place to the process that has asked for it."""
        refuse_what_cannot_move(request, num_stages, self._ring.plan_digest)
        self._await_newcomer(request, client)
        leave = Leave((), request.by, moved_to=request.address)
        self._roll(RollingPlan(((request.stage,),)), leave, client)
        return Outcome(f"stage {request.stage} has moved to {request.address}")

    def _await_newcomer(self, request: Replace, client: ChangeConnection) -> None:
        """Return when another process asks for the place.

        Raises:
            ZppError: (STAGE) none does in time, or the ring is over; (FAILURE) the client has disconnected.
        """
        before = self._ring.knocks(request.stage)
        client.send(Accepted(f"waiting {request.wait_s:g} s at most for the new stage {request.stage} to ask"))
        deadline = Deadline(request.wait_s)
        while self._ring.knocks(request.stage) <= before:
            snapshot = self._look(client)
            if snapshot.fault is not None:
                raise stage_error(f"the pipeline has ended: {snapshot.fault.message}", snapshot.fault.hint)
            if not snapshot.client_connected:
                raise ZppError("the client has disconnected, and nothing was changed")
            if not deadline.remaining_s():
                raise stage_error(
                    f"no other stage {request.stage} has asked for the place in {request.wait_s:g} s: nothing changed",
                    "See its log: does it reach the stage before it? Or give it more time with --wait.",
                )
            # The stage before counts the requests, and may restart meanwhile and count from zero.
            before = min(before, self._ring.knocks(request.stage))
            time.sleep(POLL_S)

    def _rebalance(self, request: Rebalance, client: ChangeConnection) -> Outcome:
        """Have all stages whose layers change restart at once: one by one, a layer would be loaded twice or nowhere."""
        refuse_another_plan(request.plan_digest, self._ring.plan_digest)
        facts = self._ring.facts()
        partition = new_partition(request.ranges, facts)
        stages = self._ring.prepare_partition(partition)
        client.send(Accepted(f"{len(stages)} of {len(facts)} stages come again with other layers"))
        ranges = tuple((own.start, own.end) for own in partition)
        self._roll(RollingPlan((stages,)), Leave((), request.by, partition=ranges), client)
        return Outcome(f"the layers are now {' '.join(map(str, partition))}")

    def _roll(self, plan: RollingPlan, leave: Leave, client: ChangeConnection) -> None:
        """Have the groups of stages of a plan leave and restart, one group after the other.

        Raises:
            ZppError: (STAGE) the ring is over; (FAILURE) the client has disconnected before the last group.
        """
        began = 0.0
        while True:
            plan, action = react(plan, self._look(client))
            match action:
                case Ask(seats=seats):
                    began = time.monotonic()
                    client.send(Progress(f"{_named(seats)} is asked to leave"))
                    self._ring.ask_to_leave(msgspec.structs.replace(leave, seats=seats))
                case Came(now=now):
                    for progress in _returned(now, time.monotonic() - began):
                        client.send(progress)
                case Over(fault=None):
                    refuse_what_is_left(plan)
                    return
                case Over(fault=ZppError() as fault):
                    raise stage_error(f"the change has ended with the pipeline: {fault.message}", fault.hint)
                case None:
                    time.sleep(POLL_S)

    def _look(self, client: ChangeConnection) -> RingSnapshot:
        return replace(self._ring.look(), client_connected=not client.disconnected())


def _named(seats: tuple[Seat, ...]) -> str:
    return ", ".join(f"stage {seat.stage} ({seat.host}, pid {seat.pid})" for seat in seats)


def _returned(now: tuple[Seat, ...], took_s: float) -> Iterator[Progress]:
    for seat in now:
        text = f"stage {seat.stage} is back after {took_s:.1f} s: {seat.host}, pid {seat.pid}"
        yield Progress(text, seat.stage, seat.pid, took_s)


def refuse_what_is_left(plan: RollingPlan) -> None:
    """Fail a change of which stages are left because its client has disconnected.

    Raises:
        ZppError: (FAILURE) there are some.
    """
    left = [str(place) for group in plan.groups for place in group]
    if left:
        raise ZppError(
            f"the client has disconnected: stage {', '.join(left)} is left as it was", "Ask again for the rest."
        )
