# SPDX-License-Identifier: Apache-2.0
"""Faults at random, done to the stages of a running pipeline, each one made good after a while or by who started it.

A worker that is killed is started again by its `run-stage` command, or by `serve`; a process that is stopped is
continued, or by `serve` killed and started again; a `run-stage` command that is killed is typed again here; a host
that is cut off is joined again.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import psutil
from netns import Network
from served import Served
from stages import Stage

STOPPED_S = (0.5, 4.0)
CUT_S = (0.5, 6.0)
FOUND_S = 1.0
"""By then, a worker's death has been found."""


class Pipeline(Protocol):
    """What can be struck."""

    def workers(self) -> dict[int, psutil.Process]:
        """The process that computes each stage, of those that there are just now."""

    def processes(self) -> list[psutil.Process]:
        """All of them, of all stages."""


@dataclass
class Commands:
    """A pipeline of `run-stage` commands.

    Attributes:
        words: of the commands, in order.
        logs: where their logs go.
        hosts: the network that has a host for each stage; all are on this one, if None.
        stages: the commands that run; one that is typed again takes the place of the one that was killed.
    """

    words: list[list[object]]
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

    def kill_and_type_again(self, stage: int) -> None:
        """The command in the foreground and all that it has started, as when a host goes; then it is typed again."""
        processes = self.stages[stage].look()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)
        life = len(list(self.logs.glob(f"stage-{stage}*.log")))
        log = self.logs / f"stage-{stage}-{life}.log"
        self.stages[stage] = Stage(log, *self.words[stage], inside=partial(self.line, stage))

    def line(self, stage: int, words: list[str]) -> list[str]:
        """A command line that runs these words on the host of a stage."""
        return self.hosts.words(stage, *words) if self.hosts else words


@dataclass
class Household:
    """A pipeline that one `zpptool serve` keeps up."""

    served: Served

    def workers(self) -> dict[int, psutil.Process]:
        found = self.served.look()
        return {int(name.removeprefix("stage ")): found[name] for name in found if name != "head"}

    def processes(self) -> list[psutil.Process]:
        self.served.look()
        return [psutil.Process(self.served.process.pid), *self.served.seen]


@dataclass
class Killer:
    """Does one fault after the other.

    Attributes:
        pipeline: what is struck.
        num_stages: how many stages it has.
        chance: decides what is done to whom.
        done: how often each fault was done.
    """

    pipeline: Pipeline
    num_stages: int
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    _deck: list[Callable[[], str]] = field(default_factory=list)

    def strike(self) -> str:
        """Do one fault; its name. Each kind has its turn before one comes again."""
        if not self._deck:
            self._deck = [self.kill_one, self.kill_two, self.stop_one]
            if isinstance(self.pipeline, Commands):
                self._deck.append(self.kill_a_command)
                if self.pipeline.hosts:
                    self._deck += [self.cut_one, self.cut_one_while_another_recovers]
            self.chance.shuffle(self._deck)
        name = self._deck.pop()()
        self.done[name] += 1
        return name

    def kill_one(self) -> str:
        self._signal(self.chance.randrange(self.num_stages), signal.SIGKILL)
        return "worker killed"

    def kill_two(self) -> str:
        for stage in self.chance.sample(range(self.num_stages), 2):
            self._signal(stage, signal.SIGKILL)
        return "two workers killed"

    def stop_one(self) -> str:
        """SIGSTOP, and SIGCONT after a while."""
        stage = self.chance.randrange(self.num_stages)
        self._signal(stage, signal.SIGSTOP)
        time.sleep(self.chance.uniform(*STOPPED_S))
        self._signal(stage, signal.SIGCONT)
        return "worker stopped for a while"

    def kill_a_command(self) -> str:
        """Never stage 0's: its API is what the streams hang on."""
        assert isinstance(self.pipeline, Commands)
        self.pipeline.kill_and_type_again(self.chance.randrange(1, self.num_stages))
        return "command killed and typed again"

    def cut_one(self) -> str:
        """What a host sends gets nowhere for a while."""
        assert isinstance(self.pipeline, Commands)
        assert self.pipeline.hosts is not None
        with self.pipeline.hosts.disturbed(hosts=[self.chance.randrange(self.num_stages)], loss=100):
            time.sleep(self.chance.uniform(*CUT_S))
        return "host cut off for a while"

    def cut_one_while_another_recovers(self) -> str:
        self.kill_one()
        time.sleep(self.chance.uniform(0, FOUND_S))
        self.cut_one()
        return "host cut off while a stage recovers"

    def _signal(self, stage: int, number: signal.Signals) -> None:
        """To the worker of a stage, if it has one just now."""
        with suppress(KeyError, psutil.NoSuchProcess):
            self.pipeline.workers()[stage].send_signal(number)


def resident_bytes(pipeline: Pipeline) -> int:
    """Memory of all processes of all stages."""
    total = 0
    for process in pipeline.processes():
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total
