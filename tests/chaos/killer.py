# SPDX-License-Identifier: Apache-2.0
"""Random faults in the stages of a running pipeline, each of which is undone here or by the command under test.

A worker that is killed is restarted by its `run-stage` command, or by `serve`; a process that is stopped is continued,
or killed and restarted by `serve`; a `run-stage` command that is killed is run again here; a host that is cut off is
connected again.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Protocol

import psutil
from netns import Network
from served import Served
from stages import Stage

STOPPED_S = (0.5, 4.0)
CUT_S = (0.5, 6.0)
FOUND_S = 1.0
"""Seconds within which the end of a worker is detected."""


class Pipeline(Protocol):
    """A pipeline in which faults can be injected."""

    def workers(self) -> dict[int, psutil.Process]:
        """The process that computes each stage, where there is one now."""

    def processes(self) -> list[psutil.Process]:
        """All processes of all stages."""


@dataclass
class Commands:
    """A pipeline of `run-stage` commands.

    Attributes:
        arguments: of the commands, in order.
        logs: where their logs go.
        hosts: the network that has a host for each stage; None for all on this host.
        stages: the commands that run; one that is run again replaces the one that was killed.
    """

    arguments: list[list[object]]
    logs: Path
    hosts: Network | None = None
    stages: list[Stage] = field(default_factory=list)

    def workers(self) -> dict[int, psutil.Process]:
        found = {}
        for number, stage in enumerate(self.stages):
            with suppress(StopIteration, psutil.NoSuchProcess):
                found[number] = stage.worker()
        return found

    def processes(self) -> list[psutil.Process]:
        return [process for stage in self.stages for process in stage.look()]

    def kill_and_run_again(self, stage: int) -> None:
        """Kill a command and everything that it has started, as when its host fails, and run it again."""
        processes = self.stages[stage].look()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)
        number = len(list(self.logs.glob(f"stage-{stage}*.log")))
        log = self.logs / f"stage-{stage}-{number}.log"
        self.stages[stage] = Stage(log, *self.arguments[stage], inside=partial(self.argv, stage))

    def argv(self, stage: int, argv: list[str]) -> list[str]:
        """A command line that runs `argv` on the host of a stage."""
        return self.hosts.words(stage, *argv) if self.hosts else argv


@dataclass
class ServeCommand:
    """A pipeline that one `zpptool serve` keeps running."""

    served: Served

    def workers(self) -> dict[int, psutil.Process]:
        found = self.served.look()
        return {int(name.removeprefix("stage ")): found[name] for name in found if name != "head"}

    def processes(self) -> list[psutil.Process]:
        self.served.look()
        return [psutil.Process(self.served.process.pid), *self.served.seen]


@dataclass
class Killer:
    """Injects one fault after the other.

    Attributes:
        pipeline: where faults are injected.
        num_stages: how many stages it has.
        random: chooses fault and stage.
        done: how often each fault was injected.
    """

    pipeline: Pipeline
    num_stages: int
    random: Random
    done: Counter[str] = field(default_factory=Counter)
    _deck: list[Callable[[], str]] = field(default_factory=list)

    def inject(self) -> str:
        """Inject one fault and return its name. Each kind is used once before one is repeated."""
        if not self._deck:
            self._deck = [self.kill_one, self.kill_two, self.stop_one]
            if isinstance(self.pipeline, Commands):
                self._deck.append(self.kill_a_command)
                if self.pipeline.hosts:
                    self._deck += [self.cut_one, self.cut_one_while_another_recovers]
            self.random.shuffle(self._deck)
        name = self._deck.pop()()
        self.done[name] += 1
        return name

    def kill_one(self) -> str:
        self._signal(self.random.randrange(self.num_stages), signal.SIGKILL)
        return "worker killed"

    def kill_two(self) -> str:
        for stage in self.random.sample(range(self.num_stages), 2):
            self._signal(stage, signal.SIGKILL)
        return "two workers killed"

    def stop_one(self) -> str:
        """SIGSTOP, and SIGCONT after a while."""
        stage = self.random.randrange(self.num_stages)
        self._signal(stage, signal.SIGSTOP)
        time.sleep(self.random.uniform(*STOPPED_S))
        self._signal(stage, signal.SIGCONT)
        return "worker stopped for a while"

    def kill_a_command(self) -> str:
        """Never stage 0's: the streams are connected to its API."""
        assert isinstance(self.pipeline, Commands)
        self.pipeline.kill_and_run_again(self.random.randrange(1, self.num_stages))
        return "command killed and run again"

    def cut_one(self) -> str:
        """Everything that a host sends is dropped for a while."""
        assert isinstance(self.pipeline, Commands)
        assert self.pipeline.hosts is not None
        with self.pipeline.hosts.disturbed(hosts=[self.random.randrange(self.num_stages)], loss=100):
            time.sleep(self.random.uniform(*CUT_S))
        return "host cut off for a while"

    def cut_one_while_another_recovers(self) -> str:
        self.kill_one()
        time.sleep(self.random.uniform(0, FOUND_S))
        self.cut_one()
        return "host cut off while a stage recovers"

    def _signal(self, stage: int, number: signal.Signals) -> None:
        """Send a signal to the worker of a stage, if it has one now."""
        with suppress(KeyError, psutil.NoSuchProcess):
            self.pipeline.workers()[stage].send_signal(number)


def resident_bytes(pipeline: Pipeline) -> int:
    """Memory of all processes of all stages."""
    total = 0
    for process in pipeline.processes():
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total
