# SPDX-License-Identifier: Apache-2.0
"""Schedulers that keep a copy of what passes between them and the workers; otherwise vLLM's own, and the stages' own.

Selected with `--scheduler-cls recording.RecordingScheduler` (unsplit) and `recording.RecordingStagesScheduler`. Each
engine core appends to a file of its own in `ZPP_TEST_RECORD`; the copies are pickled, for they stay in the test's own
directory.
"""

from __future__ import annotations

import os
import pickle
import pkgutil
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler

from zpptool.config.engine_kind import BALANCED_SCHEDULER


class Recording:
    """What is kept; goes before a scheduler among the bases of a class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._file = (Path(os.environ["ZPP_TEST_RECORD"]) / f"{os.getpid()}.pickle").open("ab")

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        made = super().schedule(*args, **kwargs)
        self._keep(made)
        return made

    def get_grammar_bitmask(self, *args: Any, **kwargs: Any) -> GrammarOutput | None:
        made = super().get_grammar_bitmask(*args, **kwargs)
        self._keep(made)
        return made

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        self._keep(model_runner_output)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _keep(self, passed: Any) -> None:
        pickle.dump(passed, self._file)
        self._file.flush()


class RecordingScheduler(Recording, Scheduler):
    """vLLM's scheduler, watched."""


class RecordingStagesScheduler(Recording, pkgutil.resolve_name(BALANCED_SCHEDULER)):
    """The scheduler that stages have unless the user names another, watched."""


def recorded(directory: Path) -> list[Any]:
    """Everything that was kept, in order, one engine core after the other."""
    kept = []
    for path in sorted(directory.glob("*.pickle")):
        with path.open("rb") as file:
            while True:
                try:
                    kept.append(pickle.load(file))
                except EOFError:
                    break
    return kept
