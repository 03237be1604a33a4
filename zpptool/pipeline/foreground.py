# SPDX-License-Identifier: Apache-2.0
"""One stage in the foreground: its processes share this terminal, and end together, whatever ends the first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from zpptool.console import Console
from zpptool.pipeline.launch import check_engine, private_directory, process_fault, start_stage
from zpptool.pipeline.process import ProcessGroup
from zpptool.pipeline.spec import StageSpec


def run_in_foreground(spec: StageSpec, env: Mapping[str, str], console: Console) -> None:
    """Start a stage's processes and stay until one of them ends; then end the others.

    Raises:
        ZppError: a process ended with an error.
        KeyboardInterrupt: the user has had enough.
    """
    check_engine(spec.engine)
    with private_directory() as directory, ProcessGroup() as group:
        if spec.is_first and not spec.headless:
            spec = msgspec.structs.replace(spec, local=_local_endpoint(directory))
        console.note(
            f"stage {spec.stage} of {spec.num_stages}, layers {spec.layers} of {spec.model} on {spec.engine}:"
            f" binds {spec.bind}, {_who_connects(spec)}"
        )
        start_stage(group, spec, env)
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
