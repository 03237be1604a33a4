# SPDX-License-Identifier: Apache-2.0
"""The processes of one supervised pipeline: started, observed, and ended by place, as the supervisor decides.

Only the supervisor's thread uses a `PipelineProcesses`, except for what is marked otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ExitCode, ZppError
from zpptool.places import HEAD, place_name
from zpptool.process.group import STOP_GRACE_S, Child, Hurry, ProcessGroup
from zpptool.process.progress import read_phase
from zpptool.process.respawn import common_partition
from zpptool.process.run_dir import private_directory
from zpptool.ring.status import RingStatus, status_path
from zpptool.supervisor import lifecycle as lc
from zpptool.supervisor.hang_detection import WHOLE_PHASES, find_hung, is_repaired
from zpptool.supervisor.pipeline_view import ProcessView
from zpptool.supervisor.readiness import ReadinessProbe
from zpptool.supervisor.stage_processes import child_environment, file_name, process_fault, saved_spec, start_stage
from zpptool.supervisor.standby.spare_pool import SparePool
from zpptool.supervisor.status_poller import StatusPoller

SIGNALLED = 128
"""A process that ends itself because of a signal exits with this and the signal's number."""
MakeSpecs = Callable[[Path], tuple[StageSpec, ...]]
"""The specs of every stage of one run; its argument is a private directory that exists as long as the run."""


@dataclass(frozen=True)
class PipelineConfig:
    """What a pipeline is started from, each time it is started.

    Attributes:
        name: what a user calls the pipeline, for log messages.
        make_specs: makes the specs of its stages.
        env: each stage's additions to the environment.
        log_dir: where its logs go: a directory for each generation.
        rules: when it is restarted and given up.
        spares: how many processes are kept ready to replace one that is lost.
    """

    name: str
    make_specs: MakeSpecs
    env: tuple[Mapping[str, str], ...]
    log_dir: Path
    rules: lc.Rules
    spares: int = 0


class PipelineProcesses:
    """All processes of one pipeline, and its spares.

    Attributes:
        specs: of this run's stages; none before the first.

    Args:
        config: what they are started from.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.specs: tuple[StageSpec, ...] = ()
        self._config = config
        self._pool = SparePool(config.spares, config.name)
        self._group = ProcessGroup(self._pool)
        self._run_directory = ExitStack()
        self._phase_dir = Path()
        self._poller: StatusPoller | None = None
        self._probe: ReadinessProbe | None = None
        self._hung: dict[int, str] = {}
        self._lost_pids: frozenset[int] = frozenset()

    @property
    def ring(self) -> RingStatus | None:
        """The head's last status; None where there is none. May be called from any thread."""
        poller = self._poller
        return poller.status if poller is not None else None

    @property
    def ready_spares(self) -> int:
        """How many spares are ready. May be called from any thread."""
        return self._pool.ready

    def view(self) -> tuple[ProcessView, ...]:
        """The processes now, in the order of their start. May be called from any thread."""
        phase_dir = self._phase_dir
        return tuple(
            ProcessView(child.name, child.popen.pid, read_phase(phase_dir / file_name(child.name)), not child.ended)
            for child in tuple(self._group.children)
        )

    def start(self, places: tuple[int, ...], generation: int) -> None:
        """Start the processes of these places.

        Args:
            places: `HEAD` for the head, else numbers of stages.
            generation: names the directory of their logs.

        Raises:
            OSError, ZppError: a process cannot be started; others may have been.
        """
        logs = self._config.log_dir / f"generation-{generation}"
        logs.mkdir(parents=True, exist_ok=True)
        if not self._group.children:
            self._begin_run()
        if HEAD in places:  # the status of the former head does not count for the new one
            self._watch_ring()
        for place in places:
            (self._phase_dir / file_name(place_name(place))).unlink(missing_ok=True)
        self._read_saved_specs()
        for spec, env in zip(self.specs, self._config.env, strict=True):
            start_stage(self._group, spec, env, logs, self._phase_dir, places)
        self._probe = ReadinessProbe(self.specs[0]) if HEAD in places else None

    def end(self, places: tuple[int, ...], *, at_once: bool, hurry: Hurry) -> None:
        """End the processes of these places, and wait for that.

        Args:
            places: `HEAD` for the head, else numbers of stages.
            at_once: without a grace.
            hurry: ends the grace early.
        """
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None
        names = {place_name(place) for place in places}
        self._lost_pids |= {child.popen.pid for child in self._group.children if child.name in names}
        self._group.stop(0.0 if at_once else STOP_GRACE_S, hurry=hurry, names=names)
        if not self._group.children:
            if self._poller is not None:
                self._poller.stop()
                self._poller = None
            with suppress(ZppError):  # a saved spec that cannot be read is dropped
                self._read_saved_specs()
            self._run_directory.close()

    def close(self) -> None:
        """End every process at once, and the spares."""
        with self._group:
            self.end(self._config.rules.places, at_once=True, hurry=lambda: True)

    def maintain_spares(self, *, ready: bool) -> None:
        """Keep the spares ready; `ready` is whether the pipeline is, so that a spare may be started."""
        stable = ready and self.ring is not None and self.ring.phase in WHOLE_PHASES
        env = child_environment(self._config.env[0])
        self._pool.maintain(self.specs, env, stable=stable, log_dir=self._config.log_dir)

    def any_ended(self) -> bool:
        """Whether a process has ended by itself."""
        return self._group.any_ended()

    def is_whole(self) -> bool:
        """Whether the pipeline has become whole since the last start.

        A head that was started is asked for a token. One that has kept running knows by itself; a token of the probe's
        might have to wait behind the requests in progress.
        """
        if self._probe is not None:
            return self._probe.is_whole()
        return is_repaired(self.ring, self._lost_pids)

    def kill_hung(self) -> None:
        """Kill the process that the ring waits for and that gives no sign of life: then it has ended, like any that
        ends by itself."""
        if self._poller is None:
            return
        places = {place_name(place): place for place in self._config.rules.places}
        children = {places[child.name]: child for child in self._group.children if not child.ended}
        pids = {place: child.popen.pid for place, child in children.items()}
        found = find_hung(self._poller.status, self._poller.unanswered_s, self.specs[0].beat_timeout_s, pids)
        if found is not None:
            place, reason = found
            self._hung[place] = reason
            children[place].popen.kill()
            children[place].popen.wait()

    def loss(self, state: lc.State, hurry: Hurry) -> lc.Lost:
        """What was lost and why, once a process has ended by itself.

        Other processes are given time to end too, unless the loss costs no more than itself.

        Args:
            state: the pipeline's.
            hurry: ends the wait early.
        """
        child = self._group.culprit(hurry=lambda: hurry() or self._is_lost_alone(state))
        if child.popen.returncode == ExitCode.AGAIN:
            return lc.Lost(lc.Cause(f"{child.name} {child.how_it_ended()}", planned=True), self._ended_places())
        return lc.Lost(self._cause(child), self._lost_places())

    def _cause(self, child: Child) -> lc.Cause:
        code = child.popen.returncode
        fault = self._poller.fault if self._poller is not None else ""
        cause = replace(cause_of(process_fault(child)), own_reason=_has_own_reason(code))
        ended = self._ended_places()
        for place in ended:
            if reason := self._hung.pop(place, ""):
                cause = replace(cause, message=f"{place_name(place)} hangs and was killed: {reason}")
        if code == ExitCode.STAGE and fault:  # it has lost another process, or the head has ended it and knows why
            return replace(cause, message=f"{cause.message}: {fault}")
        if others := [place_name(place) for place in ended if place_name(place) != child.name]:
            return replace(cause, message=f"{cause.message}, and {', '.join(others)} ended too")
        return cause

    def _ended_places(self) -> tuple[int, ...]:
        ended = {child.name for child in self._group.children if child.ended}
        return tuple(place for place in self._config.rules.places if place_name(place) in ended)

    def _lost_places(self) -> tuple[int, ...]:
        """The places that have ended; all places, where one has ended because the ring is over."""
        over = any(child.popen.poll() == ExitCode.STAGE for child in self._group.children)
        return self._config.rules.places if over else self._ended_places()

    def _is_lost_alone(self, state: lc.State) -> bool:
        lost, rules = self._lost_places(), self._config.rules
        if all(child.popen.returncode == ExitCode.AGAIN for child in self._group.children if child.ended):
            return True
        return lost != rules.places and lc.restarted(state, lost, rules) == lost

    def _begin_run(self) -> None:
        scratch = self._run_directory.enter_context(private_directory())
        self._phase_dir = scratch / "phases"
        self._phase_dir.mkdir()
        moved = common_partition(self.specs)
        self.specs = self._config.make_specs(scratch)
        if moved:
            self.specs = tuple(msgspec.structs.replace(spec, partition=moved) for spec in self.specs)

    def _read_saved_specs(self) -> None:
        """Take over what planned changes have altered for the restart of the stages."""
        self.specs = tuple(saved_spec(self._phase_dir, spec) for spec in self.specs)

    def _watch_ring(self) -> None:
        if self._poller is not None:
            self._poller.stop()
        self._poller = StatusPoller(status_path(self.specs[0].local))


def cause_of(fault: Exception, message: str | None = None) -> lc.Cause:
    """An error as the cause of a loss; `message` takes the place of the error's own."""
    if isinstance(fault, ZppError):
        return lc.Cause(message or fault.message, fault.hint, int(fault.exit_code))
    return lc.Cause(message or str(fault))


def _has_own_reason(code: int) -> bool:
    """Whether a process exited by itself, and not because it has lost another one, so that a restart would fail too."""
    return 0 < code < SIGNALLED and code != ExitCode.STAGE
