# SPDX-License-Identifier: Apache-2.0
"""One stage in the foreground: its processes share this terminal, and end together, whatever ends the first.

Where the loss of a stage is survived, a process that was killed or has failed is started again, alone: the others keep
what they have, and the ring takes it in.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from zpptool.config.stage_spec import StageSpec
from zpptool.console import Console
from zpptool.process.group import POLL_S, ProcessGroup
from zpptool.process.run_dir import private_directory
from zpptool.supervisor.restarter import Restarter
from zpptool.supervisor.stage_processes import child_environment, process_fault, start_stage
from zpptool.supervisor.standby.standby import Standby


def run_in_foreground(spec: StageSpec, env: Mapping[str, str], console: Console, spares: int = 0) -> None:
    """Start a stage's processes and stay until one of them ends; then end the others.

    Args:
        spec: the stage.
        env: added to the environment.
        console: is told.
        spares: how many processes are kept ready to take the place of one that is lost.

    Raises:
        ZppError: a process ended with an error.
        KeyboardInterrupt: the user has had enough.
    """
    standby = Standby(spares, console.note)
    with private_directory() as directory, ProcessGroup(standby) as group:
        if spec.is_first and not spec.headless:
            spec = msgspec.structs.replace(spec, local=_local_endpoint(directory))
        console.note(
            f"stage {spec.stage} of {spec.num_stages}, layers {spec.layers} of {spec.model} on {spec.engine}:"
            f" binds {spec.bind}, {_who_connects(spec)}"
        )
        phases = directory / "phases"
        phases.mkdir()
        start_stage(group, spec, env, phase_dir=phases)
        revival = Restarter(group, phases, console.warn, console.note)
        if spec.recovery_deadline_s:
            while not revival.look():
                if spares:
                    standby.keep((spec,), child_environment(env), calm=revival.all_stand(), log_dir=None)
                time.sleep(POLL_S)
        ended = group.wait_for_end()
        if ended.popen.returncode != 0:
            raise process_fault(ended)
        console.note(f"{ended.name} has ended")


def _who_connects(spec: StageSpec) -> str:
    if spec.is_first and spec.headless:
        return f"waits for its head at {spec.local}"
    return f"{'the head' if spec.is_first else 'it'} connects to {spec.connect}"


def _local_endpoint(directory: Path) -> str:
    """Where head and worker of stage 0 meet."""
    return f"ipc://{directory / 'head'}"
