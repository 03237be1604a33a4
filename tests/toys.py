# SPDX-License-Identifier: Apache-2.0
"""A ring with real links and an engine that computes nothing: stages as threads of this process, or as processes.

The toy engine's step takes the tensors of the stage before, appends its own place, and passes them on; the last stage
answers with what came. Every other method does one thing wrong, or waits, at the stage that its payload names.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from zpptool.config.endpoints import plan_endpoints
from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.base import run_stage_worker, serve_calls
from zpptool.errors import ZppError
from zpptool.ring.head.node import HeadNode
from zpptool.ring.membership import open_head_node, open_stage_node, stage_facts
from zpptool.ring.messages import Call
from zpptool.ring.stage.node import StageNode
from zpptool.wire.link_errors import StaleEpoch

ROOT = Path(__file__).resolve().parents[1]
FLOOD_MESSAGES = 400
FLOOD_BYTES = 1 << 20
SPEAKS_AFTER_S = 20.0


class ToyEngine:
    """An engine of no model; `agreed` says what the spec calls its model."""

    def __init__(self, spec: StageSpec, node: StageNode) -> None:
        self._spec = spec
        self._node = node
        self._learnt: list[bytes] = []

    def agreed(self) -> dict[str, str]:
        return {"model": self._spec.model}

    def do(self, call: Call, payload: bytes) -> bytes:
        stage = self._spec.stage
        if call.method == "where":
            return str(stage).encode() + payload
        if call.method == "step":
            return self._pass_on(payload)
        if call.method == "learn":  # to be a set-up call
            self._learnt.append(payload)
            return str(os.getpid()).encode()
        if call.method == "slow learn":
            time.sleep(float(payload))
            self._learnt.append(payload)
            return b""
        if call.method == "learnt":
            return b" ".join(self._learnt)
        if int(payload) != stage:
            return b"not me"
        if call.method == "fail":
            raise ValueError(f"stage {stage} was told to fail")
        if call.method == "refuse":
            raise ZppError(f"stage {stage} will not", "Ask another one.")
        if call.method == "sleep":
            time.sleep(SPEAKS_AFTER_S)
        if call.method == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if call.method == "flood":
            for _ in range(FLOOD_MESSAGES):
                self._node.send_tensors(b"flood", [memoryview(bytes(FLOOD_BYTES))])
        if call.method == "await tensors":
            self._node.receive_tensors()
        return b"done"

    def _pass_on(self, payload: bytes) -> bytes:
        """Tensors that name the call they belong to and the stages that they met."""
        tensors = payload
        if not self._spec.is_first:
            message = self._node.receive_tensors()
            assert message.header == payload, f"the tensors of {message.header!r} came with the call {payload!r}"
            tensors = bytes(message.frames[0])
        tensors += f" {self._spec.stage}".encode()
        if not self._spec.is_last:
            self._node.send_tensors(payload, [memoryview(tensors)])
        return tensors


def ring_specs(
    num_stages: int,
    directory: Path,
    *,
    base_port: int | None = None,
    start_s: float = 10.0,
    step_s: float = 10.0,
    recovery_s: float = 0.0,
) -> tuple[StageSpec, ...]:
    """The specs of a ring over ipc in `directory`, or over tcp from `base_port` on; two layers a stage."""
    if base_port is None:
        endpoints = plan_endpoints(num_stages, transport="ipc", ipc_dir=directory)
    else:
        endpoints = plan_endpoints(num_stages, base_port)
    return tuple(
        StageSpec(
            engine=Engine.TRANSFORMERS,
            model="toy",
            partition=tuple((2 * stage, 2 * stage + 2) for stage in range(num_stages)),
            stage=link.stage,
            bind=link.bind,
            connect=link.connect,
            local=f"ipc://{directory}/local",
            start_timeout_s=start_s,
            step_timeout_s=step_s,
            recovery_deadline_s=recovery_s,
        )
        for link in endpoints
    )


def changed(spec: StageSpec, **fields: object) -> StageSpec:
    return msgspec.structs.replace(spec, **fields)


def stage_life(spec: StageSpec, engine: type[ToyEngine] = ToyEngine) -> None:
    """What a worker process does between its first and its last line."""
    node = open_stage_node(spec)
    try:
        toy = engine(spec, node)
        node.join(stage_facts(spec, toy.agreed()))
        serve_calls(spec, node, toy.do)
    finally:
        node.close()


class Ring:
    """A head in this process, and stages as its threads.

    Attributes:
        head: the head's place, open.
        stages: how each stage's life goes on, in the order in which they were started.
        faults: what broke the pipeline, as `on_fault` told it.
    """

    def __init__(self, specs: Sequence[StageSpec], agreed: str = "toy", head: StageSpec | None = None) -> None:
        self._specs = specs
        self._agreed = agreed
        self._pool = ThreadPoolExecutor(max(len(specs), 1))
        self.head = open_head_node(head or specs[0])
        self.stages: list[Future[None]] = []
        self.faults: list[ZppError] = []
        self.broken = threading.Event()
        self.head.on_fault(self._note)

    def start(self, apart_s: float = 0.0) -> None:
        for spec in self._specs:
            self.stages.append(self._pool.submit(stage_life, spec))
            time.sleep(apart_s)

    def gather(self) -> None:
        self.head.gather({"model": self._agreed})

    def insist(
        self, method: str, payload: bytes = b"", *, from_all: bool = False, within_s: float = 30.0
    ) -> list[bytes]:
        """As `ask`, again and again until no loss comes in between."""
        while True:
            with suppress(StaleEpoch):
                return self.ask(method, payload, from_all=from_all, within_s=within_s)
            self.head.wait_until_whole()

    def ask(self, method: str, payload: bytes = b"", *, from_all: bool = False, within_s: float = 10.0) -> list[bytes]:
        return self.head.call(method, payload, from_all=from_all).result(within_s)

    def close(self) -> None:
        self.head.stop("the test is over")
        self.head.close()
        self._pool.shutdown()

    def _note(self, fault: ZppError) -> None:
        self.faults.append(fault)
        self.broken.set()


@contextmanager
def threads(specs: Sequence[StageSpec], *, head: StageSpec | None = None, apart_s: float = 0.0) -> Iterator[Ring]:
    """A ring whose stages, started in this order, have answered the roll call; stopped at the end."""
    ring = Ring(specs, head=head)
    try:
        ring.start(apart_s)
        ring.gather()
        yield ring
    finally:
        ring.close()


class Processes(Ring):
    """A ring whose stages are processes of their own.

    Attributes:
        children: the stages' processes, in the order of the stages.
    """

    def __init__(self, specs: Sequence[StageSpec], logs: Path) -> None:
        super().__init__(specs)
        self._logs = logs
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for spec in self._specs:
            self.children.append(start_process("stage", spec, self.log(spec.stage)))

    def kill(self, *stages: int) -> None:
        for stage in stages:
            self.children[stage].kill()
            self.children[stage].wait()

    def start_again(self, *stages: int) -> None:
        """Give stages that have ended another life; their logs go on."""
        for stage in stages:
            spec = next(spec for spec in self._specs if spec.stage == stage)
            self.children[stage] = start_process("stage", spec, self.log(stage), append=True)

    def log(self, stage: int) -> Path:
        return self._logs / f"stage-{stage}.log"

    def close(self) -> None:
        super().close()
        for child in self.children:
            child.kill()
            child.wait()


@contextmanager
def processes(specs: Sequence[StageSpec], logs: Path) -> Iterator[Processes]:
    """As `threads`, with processes. Whatever breaks the ring is answered with a stop, as real heads do."""
    ring = Processes(specs, logs)
    try:
        ring.start()
        ring.gather()
        yield ring
    finally:
        ring.close()


def start_process(
    role: str, spec: StageSpec, log: Path, within: Callable[[list[str]], list[str]] = list, *, append: bool = False
) -> subprocess.Popen[bytes]:
    """A stage or a head of toys in a process of its own.

    Args:
        within: makes the command line one that runs elsewhere, on another host for instance.
    """
    with log.open("ab" if append else "wb") as output:
        return subprocess.Popen(
            within([sys.executable, __file__, role, spec.to_json()]),
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip


def head_life(spec: StageSpec) -> None:
    """A head that gathers the stages, says so, and waits."""
    head: HeadNode = open_head_node(spec)
    broken = threading.Event()
    head.on_fault(lambda _fault: broken.set())
    try:
        head.gather({"model": "toy"})
        print("gathered", flush=True)
        broken.wait()
        assert head.fault is not None
        raise head.fault
    finally:
        head.stop("the head has ended")
        head.close()


def learning_head_life(spec: StageSpec) -> None:
    """A head that has the stages learn something, says what they answer, and waits."""
    head = open_head_node(spec)
    head.gather({"model": "toy"})
    answers = head.set_up("learn", b"this", timeout_s=10).result(20)
    print("learnt", *(answer.decode() for answer in answers), flush=True)
    threading.Event().wait()


ASKED_BYTES = 1 << 16


def asking_head_life(spec: StageSpec) -> None:
    """A head that asks for step after step, checks every byte of the answers, and says how many were right."""
    head = open_head_node(spec)
    try:
        head.gather({"model": "toy"})
        for number in itertools.count():
            payload = random.Random(number).randbytes(ASKED_BYTES)
            answer = head.call("step", payload, from_all=False).result()
            assert answer == [payload + b" 0 1 2"[: 2 * spec.num_stages]], f"answer {number} differs"
            print(f"right {number + 1}", flush=True)
            time.sleep(0.02)
    finally:
        head.stop("the head has ended")
        head.close()


if __name__ == "__main__":
    from zpptool.config.stage_spec import spec_from_argv
    from zpptool.process import child

    child.EXIT_GRACE_S = 1.0
    role = sys.argv.pop(1)
    if role == "stage":
        run_stage_worker(ToyEngine)
    life = {"asking head": asking_head_life, "learning head": learning_head_life}.get(role, head_life)
    child.run_child("head", lambda: life(spec_from_argv(sys.argv)))
