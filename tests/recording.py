# SPDX-License-Identifier: Apache-2.0
"""Schedulers of vLLM and of the stages that record what they exchange with the workers.

Selected with `--scheduler-cls recording.RecordingScheduler` (unsplit) and `recording.RecordingStagesScheduler`. Each
engine core appends to a file of its own in `ZPP_TEST_RECORD`. The records are pickled, which is safe in the test's own
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
    """A mix-in that records; it comes before the scheduler among the bases of a class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._file = (Path(os.environ["ZPP_TEST_RECORD"]) / f"{os.getpid()}.pickle").open("ab")

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        output = super().schedule(*args, **kwargs)
        self._record(output)
        return output

    def get_grammar_bitmask(self, *args: Any, **kwargs: Any) -> GrammarOutput | None:
        output = super().get_grammar_bitmask(*args, **kwargs)
        self._record(output)
        return output

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        self._record(model_runner_output)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _record(self, value: Any) -> None:
        pickle.dump(value, self._file)
        self._file.flush()


class RecordingScheduler(Recording, Scheduler):
    """vLLM's scheduler, recorded."""


class RecordingStagesScheduler(Recording, pkgutil.resolve_name(BALANCED_SCHEDULER)):
    """The scheduler that stages have unless the user names another, recorded."""


def recorded(directory: Path) -> list[Any]:
    """Everything recorded, in order, one engine core after the other."""
    records = []
    for path in sorted(directory.glob("*.pickle")):
        with path.open("rb") as file:
            while True:
                try:
                    records.append(pickle.load(file))
                except EOFError:
                    break
    return records
