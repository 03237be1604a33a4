# SPDX-License-Identifier: Apache-2.0
"""The status of a ring, as typed values: the same within the ring, on the head's socket, and behind the front server.

A stage reports about itself and about the link that it sends on. Ages are in seconds at the time of writing, so clocks
of different hosts are never compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

BEAT_S = 0.5
"""How often each place reports its status and checks its neighbour, in seconds."""
UNHEARD = "unheard"
"""The phase of a stage that has not reported yet."""
WAITING, LOADING, WARMING_UP, READY, COMPUTING = "waiting", "loading", "warming-up", "ready", "computing"
"""Phases of a stage."""
RECOVERING, BROKEN, STOPPED = "recovering", "broken", "stopped"
"""Phases that only the whole ring has."""
STEADY_PHASES = frozenset({UNHEARD, WAITING, READY, COMPUTING})
"""Phases in which a healthy stage is never silent for long. The others last as long as loading the weights takes."""
UNCONNECTED = "waiting"
"""The state of a link that no peer has connected to yet."""
SERVING_PHASES = frozenset({READY, COMPUTING})
"""Phases of a ring that takes requests."""
SILENT_S = 3.0
"""Without a report for so many seconds, a stage that is not loading or warming up is shown as silent."""
BUSY_WINDOW_S = 10.0
"""The time over which the share that a stage computes is taken, in seconds."""
SUFFIX = ".status"
"""Of the head's status socket."""
CHANGE_SUFFIX = ".change"
"""Of the head's socket for planned changes."""


class LinkStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One link, as its sender sees it.

    Attributes:
        peer: the place at its other end.
        endpoint: the address between them.
        state: `waiting`, `connected`, `lost` or `refused`.
        epoch: the link's.
        rtt_ms: the last round trip time; None before the first.
        queue: messages sent that the receiver has not reported as taken.
        bytes_sent, messages_sent: all messages sent.
        bytes_received, messages_received: of these, the ones that the receiver has reported as taken.
        refused: handshakes and connections that were refused.
        last_error: the last error as text; empty for none.
        sessions: how often a peer was accepted.
        wait_s: time that senders have waited for the peer, in seconds.
        send_s: time that handing messages to the socket has taken, in seconds.
        rtt_counts, rtt_sum_s: all round trips, as `zpptool.wire.link.counters.LinkCounters` counts them.
        knocks: handshakes that were refused only because another process has the place.
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
        host, pid: its process; empty and 0 before its first report.
        layers: the half-open layer range that it owns; None for the head, and before the first report.
        phase: what it is doing.
        epoch: the highest that it knows.
        memory_bytes: resident memory of its process.
        beat_age_s: how long its main loop has made no progress, in seconds; 0 where it waits for work.
        heard_age_s: the age of this report in seconds; without one, how long the head has waited for it.
        steps: calls that it has completed.
        receive_s: how long its main loop has waited for the tensors of the stage before, in seconds.
        rtt_ms: of its link.
        link: the one that it sends on; None before the first report.
        compute_s: how long its main loop has computed, in seconds: the time of its steps without `receive_s` and
            `send_s`.
        send_s: how long its main loop has waited to hand over tensors, in seconds.
        idle_s: how long its main loop has waited for the next step, in seconds, since its first.
        busy: the share of the last `BUSY_WINDOW_S` seconds that it has computed; None before its first step.
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
    compute_s: float = 0.0
    send_s: float = 0.0
    idle_s: float = 0.0
    busy: float | None = None

    @property
    def process(self) -> str:
        """Its process as text."""
        return f"{self.host}, pid {self.pid}" if self.pid else "no report from it yet"


class RingStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole ring, as the head knows it.

    Attributes:
        run_id: the run's name.
        epoch: its epoch.
        phase: `waiting` for stages, `loading`, `warming-up`, `ready`, `computing`, `recovering`, `broken` or `stopped`.
        fault: what broke it; empty for nothing.
        stages: each of them, in order.
        head: the head's own process and the link to stage 0.
        recoveries: how often the ring became whole again after a loss.
        stall_s: how long it was not whole because of losses and planned changes, in seconds.
        recomputed_tokens: tokens that had to be computed again because of them.
        planned: how often it became whole again after a planned change.
        model: what requests call the model; empty where the head did not say.
        api: the URL of the head's own API; empty where the head is a script.
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
    model: str = ""
    api: str = ""


def unheard(stage: int, epoch: int, age_s: float) -> StageStatus:
    """The status of a stage that the head has waited `age_s` seconds for, without a report."""
    return StageStatus(stage, "", 0, None, UNHEARD, epoch, 0, 0.0, age_s, 0, 0.0, None, None)


def is_silent(status: StageStatus) -> bool:
    """Whether a stage's last report is too old to show what it does: it is lost, or out of reach behind one that is."""
    return status.phase in STEADY_PHASES and status.heard_age_s > SILENT_S


def reason_not_serving(ring: RingStatus) -> str:
    """Why a ring takes no requests, as one line; empty if it takes them."""
    if ring.fault or ring.phase in SERVING_PHASES:
        return ring.fault
    silent = [f"stage {place.stage} for {place.heard_age_s:.0f} s" for place in ring.stages if is_silent(place)]
    return "no report from " + ", ".join(silent) if silent else "requests wait"


def first_missing(to_stage_0: LinkStatus, stages: Iterable[StageStatus]) -> tuple[int, LinkStatus] | None:
    """The first stage that has not connected to the place before it, and the link that it is to connect to; None where
    each has, or where it is not known.

    Args:
        to_stage_0: the head's own link.
        stages: their last reports, in order.
    """
    link: LinkStatus | None = to_stage_0
    for status in stages:
        if link is None:
            return None
        if link.state == UNCONNECTED:
            return status.stage, link
        link = status.link
    return None


def aged(status: StageStatus, seconds: float) -> StageStatus:
    """A status that is `seconds` old. A main loop without progress then is taken to have made none since."""
    still = status.beat_age_s + seconds if status.beat_age_s else 0.0
    return msgspec.structs.replace(status, heard_age_s=status.heard_age_s + seconds, beat_age_s=still)


def hung(stages: Iterable[StageStatus], limit_s: float) -> StageStatus | None:
    """The first stage that hangs, or None: its main loop computes without progress, or it has not reported, for longer
    than the limit.

    A stage that hangs stops relaying the reports of those after it, so they become silent a moment before it does: a
    stage that is silent for almost the limit counts if a later one is silent for all of it. Stages that load weights or
    warm up are not judged.

    Args:
        stages: their last reports, in order.
        limit_s: in seconds.
    """
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
    """The phase of a ring without faults.

    Args:
        stages: their last reports.
        gathered: whether the stages have been admitted.
        busy: whether a call is open.
    """
    if not gathered:
        return WAITING
    phases = {status.phase for status in stages}
    for slow in (LOADING, WARMING_UP):
        if slow in phases:
            return slow
    return COMPUTING if busy else READY


def status_path(local: str) -> Path:
    """The head's status socket: beside the ipc endpoint `local` between it and stage 0."""
    return Path(local.removeprefix("ipc://") + SUFFIX)


def change_path(local: str) -> Path:
    """The head's socket for planned changes, beside its status socket."""
    return Path(local.removeprefix("ipc://") + CHANGE_SUFFIX)
