# SPDX-License-Identifier: Apache-2.0
"""Faults at random, done to the stages of a running pipeline, each one made good after a while or by the stage itself.

The stages are `run-stage` commands: a worker that is killed is started again by its command, a command that is killed
is typed again here, a process that is stopped is continued.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from stages import Stage

STOPPED_S = (0.5, 4.0)


@dataclass
class Killer:
    """Does one fault after the other.

    Attributes:
        stages: the commands, in order; one that is typed again takes the place of the one that was killed.
        commands: their words.
        logs: where the logs of those go that are typed again.
        chance: decides what is done to whom.
        done: how often each fault was done.
    """

    stages: list[Stage]
    commands: list[list[object]]
    logs: Path
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)

    def strike(self) -> str:
        """Do one fault; its name."""
        fault = self.chance.choice([self.kill_one, self.kill_one, self.kill_two, self.stop_one, self.kill_a_command])
        name = fault()
        self.done[name] += 1
        return name

    def kill_one(self) -> str:
        self._signal(self.chance.randrange(len(self.stages)), signal.SIGKILL)
        return "worker killed"

    def kill_two(self) -> str:
        for stage in self.chance.sample(range(len(self.stages)), 2):
            self._signal(stage, signal.SIGKILL)
        return "two workers killed"

    def stop_one(self) -> str:
        """SIGSTOP, and SIGCONT after a while."""
        stage = self.chance.randrange(len(self.stages))
        self._signal(stage, signal.SIGSTOP)
        time.sleep(self.chance.uniform(*STOPPED_S))
        self._signal(stage, signal.SIGCONT)
        return "worker stopped for a while"

    def kill_a_command(self) -> str:
        """The command in the foreground and all that it has started, as when a host goes; then it is typed again.
        Never stage 0's: its API is what the streams hang on."""
        stage = self.chance.randrange(1, len(self.stages))
        processes = self.stages[stage].look()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)
        life = len(list(self.logs.glob(f"stage-{stage}*.log")))
        self.stages[stage] = Stage(self.logs / f"stage-{stage}-{life}.log", *self.commands[stage])
        return "command killed and typed again"

    def _signal(self, stage: int, number: signal.Signals) -> None:
        """To the worker of a stage, if it has one just now."""
        with suppress(StopIteration, psutil.NoSuchProcess):
            self.stages[stage].worker().send_signal(number)


def resident_bytes(stages: list[Stage]) -> int:
    """Memory of all processes of all stages."""
    total = 0
    for stage in stages:
        for process in stage.look():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def until(true: Callable[[], object], within_s: float) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.2)
