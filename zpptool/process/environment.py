# SPDX-License-Identifier: Apache-2.0
"""Every environment variable that a process of zpptool sets for its children, with typed access.

This is the whole contract between a parent and its children apart from the command line. Variables that a user sets,
such as `ZPP_KEYS`, belong to the command line and are not here; the two of the logging may be set by either, and are
defined in `zpptool.log`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from zpptool.config.stage_spec import StageSpec
from zpptool.log import FORMAT_VARIABLE, LEVEL_VARIABLE

PARENT_VARIABLE = "ZPP_PARENT_PID"
"""The parent's process id: the parent may end before the child can ask the kernel for it."""
PHASE_VARIABLE = "ZPP_PHASE_FILE"
"""The file in which a process, and those that it starts in turn, report their phase (`process.progress`)."""
NEXT_SPEC_VARIABLE = "ZPP_NEXT_SPEC"
"""The file in which a process saves the spec for its restart (`process.respawn`)."""
HEAD_SPEC_VARIABLE = "ZPP_HEAD_SPEC"
"""The head's spec as JSON, for vLLM's engine core. vLLM hashes its own configuration into cache keys, so ports are kept
out of that configuration."""
HEAD_FAULT_VARIABLE = "ZPP_HEAD_FAULT"
"""The file for the error that broke the pipeline, where it cannot be beside the head's local endpoint."""
VARIABLES = frozenset(
    {
        PARENT_VARIABLE, PHASE_VARIABLE, NEXT_SPEC_VARIABLE, HEAD_SPEC_VARIABLE, HEAD_FAULT_VARIABLE, LEVEL_VARIABLE,
        FORMAT_VARIABLE,
    }
)  # fmt: skip
"""All of them."""


def parent_variables() -> dict[str, str]:
    """What a child of this process needs in its environment to watch its parent."""
    return {PARENT_VARIABLE: str(os.getpid())}


def take_parent_pid() -> int:
    """The id of the process to watch, removed from the environment: it does not apply to this process's children."""
    return int(os.environ.pop(PARENT_VARIABLE, os.getppid()))


def file_variables(phase: Path, next_spec: Path) -> dict[str, str]:
    """What a child needs in its environment to report to its parent.

    Args:
        phase: the file for its phase.
        next_spec: the file for the spec of its restart.
    """
    return {PHASE_VARIABLE: str(phase), NEXT_SPEC_VARIABLE: str(next_spec)}


def phase_file() -> Path | None:
    """Where this process reports its phase; None where no parent reads it."""
    return _path(PHASE_VARIABLE)


def next_spec_file() -> Path | None:
    """Where this process saves the spec for its restart; None where no parent reads it."""
    return _path(NEXT_SPEC_VARIABLE)


def set_head_spec(spec: StageSpec) -> None:
    """Pass the head's spec to the engine core that this process starts."""
    os.environ[HEAD_SPEC_VARIABLE] = spec.to_json()


def head_spec() -> StageSpec:
    """The head's spec, as the parent of the engine core has set it.

    Raises:
        KeyError: no parent has set it.
    """
    return msgspec.json.decode(os.environ[HEAD_SPEC_VARIABLE], type=StageSpec)


def head_fault_file() -> Path | None:
    """Where the engine core writes the error that broke the pipeline; None for beside its local endpoint."""
    return _path(HEAD_FAULT_VARIABLE)


@contextmanager
def head_variables(spec: StageSpec, fault_file: Path) -> Iterator[None]:
    """Pass both to the engine core that is started inside the block, and remove them after it.

    Args:
        spec: the head's spec.
        fault_file: for the error that broke the pipeline.
    """
    set_head_spec(spec)
    os.environ[HEAD_FAULT_VARIABLE] = str(fault_file)
    try:
        yield
    finally:
        del os.environ[HEAD_SPEC_VARIABLE], os.environ[HEAD_FAULT_VARIABLE]


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None
