# SPDX-License-Identifier: Apache-2.0
"""Keeps one pipeline up: a thread that does what `lifecycle.decide` decides, and tells it what happens.

Only this thread starts and ends processes. Whatever becomes of it, they are ended before it is: a pipeline that is
`ENDED` has left nothing behind. Others look at it through `view`, which never blocks.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ExitCode, ZppError
from zpptool.places import HEAD, place_name
from zpptool.process.group import STOP_GRACE_S, ProcessGroup
from zpptool.process.progress import read_phase
from zpptool.process.respawn import common_partition
from zpptool.process.run_dir import private_directory
from zpptool.ring.status import RECOVERING, RingStatus, status_path
from zpptool.supervisor import lifecycle as lc
from zpptool.supervisor.hang_detection import WHOLE_PHASES, hanging, is_mended
from zpptool.supervisor.readiness import Readiness
from zpptool.supervisor.stage_processes import child_environment, file_name, of_next_life, process_fault, start_stage
from zpptool.supervisor.standby.standby import Standby
from zpptool.supervisor.status_poller import StatusPoller

POLL_S = 0.05
SIGNALLED = 128
"""A process that ends itself because of a signal exits with this and the signal's number."""
MakeSpecs = Callable[[Path], tuple[StageSpec, ...]]
"""The specs of every stage of one run; its argument is a private directory that lives as long as the run."""


@dataclass(frozen=True)
class ProcessView:
    """One process of a pipeline, as its parent sees it.

    Attributes:
        name: `stage 1`, `head`.
        pid: its process id.
        phase: what it says it is doing, as long as no ring knows.
        running: whether it has not ended.
    """

    name: str
    pid: int
    phase: str
    running: bool


@dataclass(frozen=True)
class PipelineView:
    """A pipeline at one moment.

    Attributes:
        state: where it stands.
        specs: of this run's stages; none before the first.
        processes: this run's, in the order of their start.
        restarts: how many times it, or a part of it, was started after the first.
        ring: what its head tells of the ring; None where it does not.
        spares: how many spare processes are ready.
    """

    state: lc.State
    specs: tuple[StageSpec, ...]
    processes: tuple[ProcessView, ...]
    restarts: int
    ring: RingStatus | None = None
    spares: int = 0

    @property
    def url(self) -> str:
        """The base of the head's API; empty before the first start."""
        return f"http://{self.specs[0].api_host}:{self.specs[0].api_port}" if self.specs else ""

    @property
    def is_recovering(self) -> bool:
        """Whether its ring has lost something, though perhaps no process."""
        return self.ring is not None and self.ring.phase == RECOVERING

    @property
    def is_ready(self) -> bool:
        return self.state.phase is lc.Phase.READY and not self.is_recovering


@dataclass(frozen=True)
class Upkeep:
    """What a pipeline is started from, again and again.

    Attributes:
        make_specs: its stages.
        env: each stage's additions to the environment.
        log_dir: where its logs go: a directory for each start.
        rules: how it is kept up.
        spares: how many processes are kept ready to take the place of one that is lost.
    """

    make_specs: MakeSpecs
    env: tuple[Mapping[str, str], ...]
    log_dir: Path
    rules: lc.Rules
    spares: int = 0


class Supervisor:
    """One pipeline and the thread that keeps it up.

    Args:
        upkeep: what it is started from.
        on_change: told of each new state, from the supervisor's thread.
        on_report: told what was lost, and in how many seconds the next start follows (None: in none).
        on_drain: asked, from the supervisor's thread, to have `drained` called when no request is under way.
        on_note: told, in words, what becomes of the spare processes.
    """

    def __init__(
        self,
        upkeep: Upkeep,
        *,
        on_change: Callable[[lc.State], None],
        on_report: Callable[[lc.Cause, float | None], None],
        on_drain: Callable[[], None],
        on_note: Callable[[str], None],
    ) -> None:
        self._upkeep = upkeep
        self._on_change, self._on_report, self._on_drain = on_change, on_report, on_drain
        self._state = lc.State()
        self._inbox: queue.SimpleQueue[lc.Event | lc.Lost] = queue.SimpleQueue()
        self._alarm_at: float | None = None
        self._stops_asked = 0
        self._specs: tuple[StageSpec, ...] = ()
        self._standby = Standby(upkeep.spares, on_note)
        self._group = ProcessGroup(self._standby)
        self._run_of_all = ExitStack()
        self._phase_dir = Path()
        self._ring: StatusPoller | None = None
        self._readiness: Readiness | None = None
        self._hung: dict[int, str] = {}
        self._lost_pids: frozenset[int] = frozenset()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Have it end in good order; asked once more, at once. May be called from any thread."""
        self._stops_asked += 1
        self._inbox.put(lc.Event.STOP)

    def drained(self) -> None:
        """Tell that no request is under way any more. May be called from any thread."""
        self._inbox.put(lc.Event.DRAINED)

    def is_over(self) -> bool:
        """Whether it has ended, or was never started: nothing of the pipeline runs."""
        return not self._thread.is_alive()

    def raise_own_fault(self) -> None:
        """Raise what went wrong in the supervisor itself, if something did."""
        if self._fault is not None:
            raise self._fault

    def view(self) -> PipelineView:
        """The pipeline now. May be called from any thread."""
        state, phase_dir, told = self._state, self._phase_dir, self._ring.told if self._ring else None
        processes = tuple(
            ProcessView(child.name, child.popen.pid, read_phase(phase_dir / file_name(child.name)), not child.ended)
            for child in tuple(self._group.children)
        )
        return PipelineView(state, self._specs, processes, max(state.epoch - 1, 0), told, self._standby.ready)

    def _run(self) -> None:
        try:
            self._take(lc.Event.BEGIN)
            wait_s = 0.0
            while self._state.phase is not lc.Phase.ENDED:
                event = self._next_event(wait_s)
                wait_s = POLL_S if event is None else 0.0
                if event is not None:
                    self._take(event)
        except BaseException as fault:  # whoever joins is told, and nothing may be left running
            self._fault = fault
        finally:
            with self._group:
                self._end(self._upkeep.rules.places, at_once=True)

    def _next_event(self, wait_s: float) -> lc.Event | lc.Lost | None:
        """What has happened; after something has, nothing is waited for, as more may have followed from it."""
        try:
            return self._inbox.get(timeout=wait_s)
        except queue.Empty:
            self._keep_spares()
        if self._state.phase in (lc.Phase.STARTING, lc.Phase.READY, lc.Phase.DRAINING):
            self._kill_what_hangs()
        if self._group.any_ended():
            if self._state.phase in (lc.Phase.BROKEN, lc.Phase.DRAINING):
                return self._lost()
            if self._state.phase in (lc.Phase.STARTING, lc.Phase.READY):
                return lc.Event.BREAK
        if self._alarm_at is not None and time.monotonic() >= self._alarm_at:
            self._alarm_at = None
            return lc.Event.ALARM
        if self._state.phase is lc.Phase.STARTING and self._is_whole():
            self._readiness = None
            return lc.Event.WHOLE
        return None

    def _keep_spares(self) -> None:
        told = self._ring.told if self._ring is not None else None
        calm = self._state.phase is lc.Phase.READY and told is not None and told.phase in WHOLE_PHASES
        env = child_environment(self._upkeep.env[0])
        self._standby.keep(self._specs, env, calm=calm, log_dir=self._upkeep.log_dir)

    def _is_whole(self) -> bool:
        """A head that was started is asked for a token. One that has stayed knows; a token of its own might have to
        wait behind the requests that go on."""
        if self._readiness is not None:
            return self._readiness.is_whole()
        return self._ring is not None and is_mended(self._ring.told, self._lost_pids)

    def _kill_what_hangs(self) -> None:
        """End what the ring waits for in vain: then it has ended, like anything that ends by itself."""
        if self._ring is None:
            return
        places = {place_name(place): place for place in self._upkeep.rules.places}
        children = {places[child.name]: child for child in self._group.children if not child.ended}
        pids = {place: child.popen.pid for place, child in children.items()}
        found = hanging(self._ring.told, self._ring.unanswered_s, self._specs[0].beat_timeout_s, pids)
        if found is not None:
            place, why = found
            self._hung[place] = why
            children[place].popen.kill()
            children[place].popen.wait()

    def _take(self, event: lc.Event | lc.Lost) -> None:
        state, actions = lc.decide(self._state, event, self._upkeep.rules)
        if state.phase is not self._state.phase:
            self._alarm_at = None
        changed, self._state = state != self._state, state
        if changed:
            self._on_change(state)
        for action in actions:
            self._do(action)

    def _do(self, action: lc.Action) -> None:
        match action:
            case lc.Start(places=places):
                self._start(places)
            case lc.End(places=places, at_once=at_once):
                self._end(places, at_once=at_once)
                self._inbox.put(lc.Event.GONE)
            case lc.SetAlarm(after_s=after_s):
                self._alarm_at = time.monotonic() + after_s
            case lc.Report(cause=cause, rest_s=rest_s):
                self._on_report(cause, rest_s)
            case lc.Drain():
                self._on_drain()

    def _start(self, places: tuple[int, ...]) -> None:
        """Start processes; one that cannot be started is a loss like any other, found by looking at the group."""
        logs = self._upkeep.log_dir / f"epoch-{self._state.epoch}"
        try:
            logs.mkdir(parents=True, exist_ok=True)
            if not self._group.children:
                self._begin_run()
            if HEAD in places:  # what the one before has told is not this one's word
                self._watch_ring()
            for place in places:
                (self._phase_dir / file_name(place_name(place))).unlink(missing_ok=True)
            self._take_in_changes()
            for spec, env in zip(self._specs, self._upkeep.env, strict=True):
                start_stage(self._group, spec, env, logs, self._phase_dir, places)
        except (OSError, ZppError) as fault:
            self._inbox.put(lc.Lost(_cause_of(fault, f"the pipeline cannot be started: {fault}")))
            return
        if HEAD in places:
            self._readiness = Readiness(self._specs[0])

    def _begin_run(self) -> None:
        scratch = self._run_of_all.enter_context(private_directory())
        self._phase_dir = scratch / "phases"
        self._phase_dir.mkdir()
        moved = common_partition(self._specs)
        self._specs = self._upkeep.make_specs(scratch)
        if moved:
            self._specs = tuple(msgspec.structs.replace(spec, partition=moved) for spec in self._specs)

    def _take_in_changes(self) -> None:
        """Read what planned changes have left for the next lives of the stages."""
        self._specs = tuple(of_next_life(self._phase_dir, spec) for spec in self._specs)

    def _watch_ring(self) -> None:
        if self._ring is not None:
            self._ring.stop()
        self._ring = StatusPoller(status_path(self._specs[0].local))

    def _end(self, places: tuple[int, ...], *, at_once: bool) -> None:
        if self._readiness is not None:
            self._readiness.give_up()
            self._readiness = None
        names = {place_name(place) for place in places}
        self._lost_pids |= {child.popen.pid for child in self._group.children if child.name in names}
        self._group.stop(0.0 if at_once else STOP_GRACE_S, hurry=self._in_a_hurry, names=names)
        if not self._group.children:
            if self._ring is not None:
                self._ring.stop()
                self._ring = None
            with suppress(ZppError):  # what cannot be read is not kept
                self._take_in_changes()
            self._run_of_all.close()

    def _in_a_hurry(self) -> bool:
        return self._stops_asked > 1

    def _lost(self) -> lc.Lost:
        """What was lost and why. Where that costs no more than itself, nobody waits for the others to follow."""
        child = self._group.culprit(hurry=lambda: self._stops_asked > 0 or self._is_lost_alone())
        code, told = child.popen.returncode, self._ring.fault if self._ring is not None else ""
        if code == ExitCode.AGAIN:
            return lc.Lost(lc.Cause(f"{child.name} {child.how_it_ended()}", planned=True), self._ended_places())
        cause = replace(_cause_of(process_fault(child)), own_reason=_has_own_reason(code))
        ended = self._ended_places()
        for place in ended:
            if why := self._hung.pop(place, ""):
                cause = replace(cause, message=f"{place_name(place)} hangs and was killed: {why}")
        if code == ExitCode.STAGE and told:  # it has lost another one, or was told to end: the head knows why
            cause = replace(cause, message=f"{cause.message}: {told}")
        elif others := [place_name(place) for place in ended if place_name(place) != child.name]:
            cause = replace(cause, message=f"{cause.message}, and {', '.join(others)} ended too")
        return lc.Lost(cause, self._lost_places())

    def _ended_places(self) -> tuple[int, ...]:
        ended = {child.name for child in self._group.children if child.ended}
        return tuple(place for place in self._upkeep.rules.places if place_name(place) in ended)

    def _lost_places(self) -> tuple[int, ...]:
        """What has ended; everything, where one has ended because the ring is over."""
        over = any(child.popen.poll() == ExitCode.STAGE for child in self._group.children)
        return self._upkeep.rules.places if over else self._ended_places()

    def _is_lost_alone(self) -> bool:
        lost, rules = self._lost_places(), self._upkeep.rules
        if all(child.popen.returncode == ExitCode.AGAIN for child in self._group.children if child.ended):
            return True
        return lost != rules.places and lc.restarted(self._state, lost, rules) == lost


def _has_own_reason(code: int) -> bool:
    """A process that exits by itself, and not because it has lost another one, has a reason that will come again."""
    return 0 < code < SIGNALLED and code != ExitCode.STAGE


def _cause_of(fault: Exception, message: str | None = None) -> lc.Cause:
    if isinstance(fault, ZppError):
        return lc.Cause(message or fault.message, fault.hint, int(fault.exit_code))
    return lc.Cause(message or str(fault))
