# SPDX-License-Identifier: Apache-2.0
"""The processes of a stage: its worker, and for stage 0 also the head. Which ones there are is decided here, once.

A run of one stage (`run-stage`) and of a whole pipeline on this machine (`test-pipeline`) start the same processes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from zpptool.config.cpu_binding import openmp_environment
from zpptool.config.engine_kind import ENGINES
from zpptool.config.runner_choice import runner_environment
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ExitCode, ZppError, stage_error, usage_error
from zpptool.places import HEAD, place_name
from zpptool.process.environment import file_variables
from zpptool.process.group import STARTER, Child, ProcessGroup
from zpptool.process.respawn import SUFFIX, next_spec

MALLOC_VARIABLES = {
    name: os.environ.get(name, value)
    for name, value in (("MALLOC_TRIM_THRESHOLD_", str(256 << 20)), ("MALLOC_MMAP_THRESHOLD_", str(32 << 20)))
}
"""Has glibc keep the memory of large activations between steps. Returning it to the kernel and faulting it in again
made a round trip of two [2048, 4096] bf16 tensors 1.85 times as long as bare ZeroMQ's, against 1.17 times
(`benchmarks/wire.py`)."""


_NO_FUTURE_WARNINGS = "ignore::FutureWarning"


def start_stage(
    group: ProcessGroup,
    spec: StageSpec,
    env: Mapping[str, str],
    log_dir: Path | None = None,
    phase_dir: Path | None = None,
    places: Collection[int] | None = None,
) -> None:
    """Start a stage's worker, and on stage 0 the head too, unless it is headless.

    Args:
        group: holds the processes.
        spec: the stage.
        env: added to this process's environment.
        log_dir: where each process's log goes; None to share this process's output.
        phase_dir: where each process reports its phase (`progress.read_phase`), and saves the spec for its restart
            where a planned change has altered it; None for neither.
        places: start only the processes of these places (`HEAD` for the head); None for all.

    Raises:
        ZppError: (USAGE) the stage's CPU binding is not possible.
    """
    modules = ENGINES[spec.engine]
    env = child_environment(env)
    roles = [(spec.stage, modules.worker, openmp_environment(env, 0, spec.tensor_parallel_size))]
    if spec.is_first and not spec.headless:
        roles.append((HEAD, modules.head, {}))
    for place, module, bound in roles:
        if places is not None and place not in places:
            continue
        name = place_name(place)
        log = log_dir / f"{file_name(name)}.log" if log_dir else None
        files, own = {}, spec
        if phase_dir:
            saved = phase_dir / f"{file_name(name)}{SUFFIX}"
            files = file_variables(phase_dir / file_name(name), saved)
            own = next_spec(saved, spec)
        group.start(name, [*STARTER, module, own.to_json()], env | files | bound, log)


def saved_spec(phase_dir: Path, spec: StageSpec) -> StageSpec:
    """A stage's spec for the restart of its worker: with what a planned change has altered.

    Raises:
        ZppError: what the worker has saved cannot be read.
    """
    return next_spec(phase_dir / f"{file_name(place_name(spec.stage))}{SUFFIX}", spec)


def child_environment(env: Mapping[str, str]) -> dict[str, str]:
    """What is added to the environment of a stage's processes: `env`, and what all processes have.

    FutureWarnings are for those who maintain torch, transformers and vLLM, so they are not shown; filters that the user
    has set in PYTHONWARNINGS come after that one and take precedence.
    """
    both = {**os.environ, **env}
    filters = ",".join(filter(None, (_NO_FUTURE_WARNINGS, both.get("PYTHONWARNINGS"))))
    common = {"PYTHONUNBUFFERED": "1", **MALLOC_VARIABLES, **runner_environment(both)}
    return {**common, **env, "PYTHONWARNINGS": filters}


def file_name(process: str) -> str:
    """The name of a process's files: `stage-1` for `stage 1`."""
    return process.replace(" ", "-")


def raise_if_ended(group: ProcessGroup) -> None:
    """Raise the error to show when a process of the pipeline has ended.

    Raises:
        ZppError: names the process, how it ended, and the end of its log.
    """
    if group.any_ended():
        raise process_fault(group.culprit())


def process_fault(child: Child) -> ZppError:
    """The end of a process as an error, with its own exit code where that names the fault, and `STAGE` otherwise."""
    tail = child.tail()
    shown = f"the end of its log, {child.log}:\n{tail}" if tail else None
    fault = stage_error(f"{child.name} {child.how_it_ended()}", shown)
    if child.popen.returncode in (ExitCode.INVALID, ExitCode.USAGE, ExitCode.ADDRESS):
        fault.exit_code = ExitCode(child.popen.returncode)
    return fault


@contextmanager
def log_directory(kept: Path | None) -> Iterator[Path]:
    """A directory for logs: `kept`, created if need be; for None one that is removed unless an error occurs."""
    if kept is not None:
        try:
            kept.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise usage_error(
                f"the logs cannot be kept in {kept}: {cause.strerror}", "Name another --log-dir."
            ) from cause
        yield kept
        return
    path = Path(tempfile.mkdtemp(prefix="zpptool-logs-"))
    try:
        yield path
    except BaseException:
        if not any(path.iterdir()):
            path.rmdir()
        raise
    shutil.rmtree(path)
