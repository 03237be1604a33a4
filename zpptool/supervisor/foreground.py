# SPDX-License-Identifier: Apache-2.0
"""One stage in the foreground: its processes share this terminal, and all end when the first one ends for good.

Where the ring recovers from the loss of a stage, a process that was killed or has failed is started again alone: the
others keep their state, and the ring admits the new process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from zpptool.config.stage_spec import StageSpec
from zpptool.process.group import POLL_S, ProcessGroup
from zpptool.process.run_dir import private_directory
from zpptool.supervisor.restarter import Restarter
from zpptool.supervisor.stage_processes import child_environment, process_fault, start_stage
from zpptool.supervisor.standby.spare_pool import SparePool

_logger = logging.getLogger(__name__)


def run_in_foreground(spec: StageSpec, env: Mapping[str, str], spares: int = 0) -> None:
    """Start a stage's processes, block until one of them ends for good, and end the others.

    Args:
        spec: the stage.
        env: added to the environment.
        spares: how many processes are kept ready to replace one that is lost.

    Raises:
        ZppError: a process ended with an error.
        KeyboardInterrupt: the user has pressed Ctrl-C.
    """
    pool = SparePool(spares)
    with private_directory() as directory, ProcessGroup(pool) as group:
        if spec.is_first and not spec.headless:
            spec = msgspec.structs.replace(spec, local=_local_endpoint(directory))
        _logger.info(
            "stage %d of %d, layers %s of %s on %s: binds %s, %s",
            spec.stage, spec.num_stages, spec.layers, spec.model, spec.engine, spec.bind, _connection(spec),
        )  # fmt: skip
        phases = directory / "phases"
        phases.mkdir()
        start_stage(group, spec, env, phase_dir=phases)
        restarter = Restarter(group, phases)
        if spec.recovery_deadline_s:
            while not restarter.poll():
                if spares:
                    pool.maintain((spec,), child_environment(env), stable=restarter.all_loaded(), log_dir=None)
                time.sleep(POLL_S)
        ended = group.wait_for_end()
        if ended.popen.returncode != 0:
            raise process_fault(ended)
        _logger.info("%s has ended", ended.name)


def _connection(spec: StageSpec) -> str:
    """What the stage receives from, as text."""
    if spec.is_first and spec.headless:
        return f"waits for its head at {spec.local}"
    return f"{'the head' if spec.is_first else 'it'} connects to {spec.connect}"


def _local_endpoint(directory: Path) -> str:
    """The endpoint between the head and the worker of stage 0."""
    return f"ipc://{directory / 'head'}"
