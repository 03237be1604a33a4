# SPDX-License-Identifier: Apache-2.0
"""How a ring fares: typed, the same on its way round the ring, on the head's socket, and in a front.

A stage says what it knows of itself and of the link that it sends on. Ages are in seconds as of the moment of writing,
so that no two clocks are ever compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

BEAT_S = 0.5
"""How often each place tells how it fares, and looks for its neighbour."""
UNHEARD = "unheard"
"""The phase of a stage that has not said anything yet."""
WAITING, LOADING, WARMING_UP, READY, COMPUTING = "waiting", "loading", "warming-up", "ready", "computing"
RECOVERING, BROKEN, STOPPED = "recovering", "broken", "stopped"
"""Phases that only the whole ring has."""
STEADY_PHASES = frozenset({UNHEARD, WAITING, READY, COMPUTING})
"""Phases in which a stage that is well is never silent for long; the others take what time the weights take."""
SUFFIX = ".status"
CHANGE_SUFFIX = ".change"
_MOST_BYTES = 16 << 20


class LinkStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One link, as its sender sees it.

    Attributes:
        peer: the place at its other end.
        endpoint: the address between them.
        state: `waiting`, `connected`, `lost` or `refused`.
        epoch: the link's.
        rtt_ms: how long a word last took there and back; None before the first.
        queue: messages sent that the receiver has not handed on, as far as it said.
        bytes_sent, messages_sent: all that was sent.
        bytes_received, messages_received: of these, what the receiver said to have handed on.
        refused: greetings and connections that were turned away.
        last_error: the last thing that went wrong, in words; empty for nothing.
        sessions: how often a peer was welcomed.
        wait_s: time that senders have waited for the peer.
        send_s: time that handing over has taken.
        rtt_counts, rtt_sum_s: all round trips, as `zpptool.wire.link.counters.Tally` counts them.
        knocks: greetings that were turned away only because another process has the place.
    """

    peer: str
    endpoint: str
    state: str
    epoch: int
    rtt_ms: float | None
    queue: int
    bytes_sent: int
    bytes_received: int
    messages_sent: int
    messages_received: int
    refused: int
    last_error: str
    sessions: int
    wait_s: float
    send_s: float
    rtt_counts: tuple[int, ...]
    rtt_sum_s: float
    knocks: int = 0


class StageStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stage, or the head (stage -1).

    Attributes:
        stage: its place.
        host, pid: its process; empty and 0 before it was heard of.
        layers: the half-open range that it owns; None for the head, and before the stage was heard of.
        phase: what it does.
        epoch: the highest that it knows of.
        memory_bytes: resident memory of its process.
        beat_age_s: how long its main loop has been at one thing without a sign of progress; 0 where it waits for work.
        heard_age_s: how old all this is; for a stage that was never heard, how long it has been waited for.
        steps: calls that it has done.
        receive_s: time that its main loop has waited for the tensors of the stage before.
        rtt_ms: of its link.
        link: the one that it sends on; None before it was heard of.
    """

    stage: int
    host: str
    pid: int
    layers: tuple[int, int] | None
    phase: str
    epoch: int
    memory_bytes: int
    beat_age_s: float
    heard_age_s: float
    steps: int
    receive_s: float
    rtt_ms: float | None
    link: LinkStatus | None

    @property
    def process(self) -> str:
        """Which process it is, in words."""
        return f"{self.host}, pid {self.pid}" if self.pid else "never heard of"


class RingStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole ring, as the head knows it.

    Attributes:
        run_id: the run's name.
        epoch: its epoch.
        phase: `waiting` for stages, `loading`, `warming-up`, `ready`, `computing`, `recovering`, `broken` or `stopped`.
        fault: what broke it; empty for nothing.
        stages: each of them, in order.
        head: the head's own process and the link to stage 0.
        recoveries: how often it became whole again after a loss.
        stall_s: how long it was not whole because of losses and planned changes.
        recomputed_tokens: tokens that had to be computed again because of them.
        planned: how often it became whole again after stages had left because they were asked to.
    """

    run_id: str
    epoch: int
    phase: str
    fault: str
    stages: tuple[StageStatus, ...]
    head: StageStatus
    recoveries: int = 0
    stall_s: float = 0.0
    recomputed_tokens: int = 0
    planned: int = 0


def unheard(stage: int, epoch: int, age_s: float) -> StageStatus:
    """What is known of a stage that has not said anything for `age_s` seconds."""
    return StageStatus(stage, "", 0, None, UNHEARD, epoch, 0, 0.0, age_s, 0, 0.0, None, None)


def aged(status: StageStatus, seconds: float) -> StageStatus:
    """A status that was written so many seconds ago. A main loop that stood still then is taken to stand still."""
    still = status.beat_age_s + seconds if status.beat_age_s else 0.0
    return msgspec.structs.replace(status, heard_age_s=status.heard_age_s + seconds, beat_age_s=still)


def hung(stages: Iterable[StageStatus], limit_s: float) -> StageStatus | None:
    """The first stage that gives no sign of life, None when all are well: its main loop computes and has not moved for
    the limit, or nothing was heard of it for so long. A stage that stands still silences those behind it, a moment
    before itself; one that loads weights or warms up may take its time."""
    silent = None
    for status in stages:
        if status.phase not in STEADY_PHASES:
            continue
        if silent is None and status.heard_age_s > max(limit_s - 2 * BEAT_S, limit_s / 2):
            silent = status
        if silent is not None and status.heard_age_s > limit_s:
            return silent
        if status.beat_age_s > limit_s:
            return status
    return None


def phase_of(stages: Iterable[StageStatus], *, gathered: bool, busy: bool) -> str:
    """What the ring as a whole does, if it is whole."""
    if not gathered:
        return WAITING
    phases = {status.phase for status in stages}
    for slow in (LOADING, WARMING_UP):
        if slow in phases:
            return slow
    return COMPUTING if busy else READY


def status_path(local: str) -> Path:
    """Where the head tells its status: beside the ipc endpoint between it and the worker of stage 0."""
    return Path(local.removeprefix("ipc://") + SUFFIX)


def change_path(local: str) -> Path:
    """Where the head takes planned changes: beside its status."""
    return Path(local.removeprefix("ipc://") + CHANGE_SUFFIX)








