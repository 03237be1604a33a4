# SPDX-License-Identifier: Apache-2.0
"""One stage in the foreground: its processes share this terminal, and all end when the first one ends for good.

A stop is orderly: a first Ctrl-C or SIGTERM lets the answers in progress end, a second one does not wait for them.

Where the ring recovers from the loss of a stage, a process that was killed or has failed is started again alone: the
others keep their state, and the ring admits the new process.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from zpptool.config.stage_spec import StageSpec
from zpptool.process.group import HEAD_NAME, POLL_S, ProcessGroup
from zpptool.process.run_dir import private_directory
from zpptool.process.service_manager import service_manager
from zpptool.process.signals import CUT_SIGNAL, DRAIN_SIGNAL, stop_requests
from zpptool.supervisor.restarter import Restarter
from zpptool.supervisor.stage_processes import child_environment, process_fault, start_stage
from zpptool.supervisor.standby.spare_pool import SparePool

_logger = logging.getLogger(__name__)

CUT_S = 4.0
"""Seconds that a head may take to end the answers in progress with an error, and to stop the ring."""


def run_in_foreground(
    spec: StageSpec, env: Mapping[str, str], spares: int = 0, shutdown_timeout_s: float = 0.0
) -> None:
    """Start a stage's processes, block until one of them ends for good, and end the others.

    Args:
        spec: the stage.
        env: added to the environment.
        spares: how many processes are kept ready to replace one that is lost.
        shutdown_timeout_s: seconds that answers in progress have to end after the first request to stop.

    Raises:
        ZppError: a process ended with an error.
        KeyboardInterrupt: the stage was stopped by a signal.
    """
    pool = SparePool(spares)
    with private_directory() as directory, stop_requests() as stops, ProcessGroup(pool) as group:
        if spec.is_first and not spec.headless:
            spec = msgspec.structs.replace(spec, local=_local_endpoint(directory))
        _logger.info(
            "stage %d of %d, layers %s of %s on %s: binds %s, %s",
            spec.stage, spec.num_stages, spec.layers, spec.model, spec.engine, spec.bind, _connection(spec),
        )  # fmt: skip
        manager = service_manager(os.environ)
        phases = directory / "phases"
        phases.mkdir()
        start_stage(group, spec, env, phase_dir=phases)
        restarter = Restarter(group, phases)

        def has_ended() -> bool:
            return restarter.poll() if spec.recovery_deadline_s else group.any_ended()

        def makes_progress() -> bool:
            return restarter.makes_progress(spec.beat_timeout_s)

        def is_hurried() -> bool:
            return not stops.empty()

        while stops.empty() and not has_ended():
            if spares:
                pool.maintain((spec,), child_environment(env), stable=restarter.all_loaded(), log_dir=None)
            manager.tick(restarter.all_loaded, makes_progress)
            time.sleep(POLL_S)
        if stops.empty():
            ended = group.culprit(is_hurried)
            if ended.popen.returncode != 0:
                raise process_fault(ended)
            _logger.info("%s has ended", ended.name)
            return
        stops.get()
        manager.stopping()
        if restarter.all_loaded():
            _drain(group, has_ended, is_hurried, shutdown_timeout_s)
        group.stop(hurry=is_hurried)
        raise KeyboardInterrupt


def _drain(group: ProcessGroup, has_ended: Callable[[], bool], is_hurried: Callable[[], bool], limit_s: float) -> None:
    """Wait until the answers in progress have ended, or the time is up.

    The head refuses requests meanwhile, and ends when it has answered; at the end of the time it ends its answers with
    an error. A stage without a head does not know of requests: it computes until the head stops the ring. A stage that
    is lost meanwhile is started again.

    Args:
        group: the stage's processes.
        has_ended: starts again what is lost, and returns whether a process has ended for good.
        is_hurried: returns whether the wait is to end.
        limit_s: the time, in seconds.
    """
    head = next((child for child in group.children if child.name == HEAD_NAME), None)

    def wait(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_hurried() and time.monotonic() < deadline:
            if (head is not None and head.ended) or has_ended():
                return
            time.sleep(POLL_S)

    if head is None:
        _logger.info("computing until the pipeline stops, for %g s at most; Ctrl-C again ends at once", limit_s)
        wait(limit_s)
        return
    _logger.info("stopping after the answers in progress, in %g s at most; Ctrl-C again ends at once", limit_s)
    head.popen.send_signal(DRAIN_SIGNAL)
    wait(limit_s)
    if not head.ended:
        head.popen.send_signal(CUT_SIGNAL)
        wait(CUT_S)


def _connection(spec: StageSpec) -> str:
    """What the stage receives from, as text."""
    if spec.is_first and spec.headless:
        return f"waits for its head at {spec.local}"
    return f"{'the head' if spec.is_first else 'it'} connects to {spec.connect}"


def _local_endpoint(directory: Path) -> str:
    """The endpoint between the head and the worker of stage 0."""
    return f"ipc://{directory / 'head'}"
