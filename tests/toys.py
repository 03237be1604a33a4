# SPDX-License-Identifier: Apache-2.0
"""A ring with real links and an engine that computes nothing: stages as threads of this process, or as processes.

The toy engine's step takes the tensors of the stage before, appends its own place, and passes them on; the last stage
answers with what has arrived. Every other method fails in one way, or waits, at the stage that its payload names.
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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from staged import VARIABLE as STAGED
from staged import patience

from zpptool.admin.attach import admin_servers
from zpptool.config.endpoints import plan_endpoints
from zpptool.config.engine_kind import Engine
from zpptool.config.runtime_options import RuntimeOptions
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
SLEEP_S = 20.0


class ToyEngine:
    """An engine without a model; `agreed` is the name of the model in the spec."""

    def __init__(self, spec: StageSpec, node: StageNode) -> None:
        self._spec = spec
        self._node = node
        self._learned: list[bytes] = []
        self._exchange = staged_exchange(spec, node) if os.environ.get(STAGED) else None

    def agreed(self) -> dict[str, str]:
        return {"model": self._spec.model}

    def do(self, call: Call, payload: bytes) -> bytes:
        stage = self._spec.stage
        if call.method == "where":
            return str(stage).encode() + payload
        if call.method == "step":
            return self._pass_on(payload)
        if call.method == "learn":  # used as a set-up call
            self._learned.append(payload)
            return str(os.getpid()).encode()
        if call.method == "slow learn":
            time.sleep(float(payload))
            self._learned.append(payload)
            return b""
        if call.method == "learnt":
            return b" ".join(self._learned)
        if int(payload) != stage:
            return b"not me"
        if call.method == "fail":
            raise ValueError(f"stage {stage} fails as the test wants")
        if call.method == "refuse":
            raise ZppError(f"stage {stage} will not", "Ask another one.")
        if call.method == "sleep":
            time.sleep(SLEEP_S)
        if call.method == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if call.method == "flood":
            for _ in range(FLOOD_MESSAGES):
                self._node.send_tensors(b"flood", [memoryview(bytes(FLOOD_BYTES))])
        if call.method == "await tensors":
            self._node.receive_tensors()
        return b"done"

    def _pass_on(self, payload: bytes) -> bytes:
        """Tensors that name the call they belong to and the stages that they have passed."""
        tensors = payload
        if not self._spec.is_first:
            of, tensors = self._take()
            assert of == payload, f"the tensors of {of!r} came with the call {payload!r}"
        tensors += f" {self._spec.stage}".encode()
        if not self._spec.is_last:
            self._send(payload, tensors)
        return tensors

    def _take(self) -> tuple[bytes, bytes]:
        if self._exchange is None:
            message = self._node.receive_tensors()
            return message.header, bytes(message.frames[0])
        values = self._exchange.take().values
        return values["of"], bytes(values["passed"].numpy())

    def _send(self, of: bytes, tensors: bytes) -> None:
        if self._exchange is None:
            self._node.send_tensors(of, [memoryview(tensors)])
            return
        import torch

        passed = torch.frombuffer(bytearray(tensors), dtype=torch.uint8)
        self._exchange.send({"of": of, "passed": passed})()
        passed.zero_()


def staged_exchange(spec: StageSpec, node: StageNode) -> Any:
    """What the toy sends through where staging is forced (`staged`); otherwise it does not need torch."""
    import torch

    from zpptool.engines.staging.exchange import TensorExchange

    return TensorExchange(node, torch.device("cpu"), in_flight=spec.num_stages + 1)


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
    start_s, recovery_s = (seconds * patience() for seconds in (start_s, recovery_s))
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
            runtime=RuntimeOptions(start_timeout_s=start_s, step_timeout_s=step_s, recovery_deadline_s=recovery_s),
        )
        for link in endpoints
    )


def changed(spec: StageSpec, **fields: object) -> StageSpec:
    """The spec with fields replaced; those of its `RuntimeOptions` too."""
    runtime = {name: fields.pop(name) for name in RuntimeOptions.__struct_fields__ if name in fields}
    return msgspec.structs.replace(spec, **fields).with_runtime(**runtime)


def run_stage(spec: StageSpec, engine: type[ToyEngine] = ToyEngine) -> None:
    """The body of a stage's worker process."""
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
        head: the head's node, open.
        stages: the run of each stage, in the order in which they were started.
        faults: what broke the pipeline, from `on_fault`.
        broken: set when it has broken.
    """

    def __init__(self, specs: Sequence[StageSpec], agreed: str = "toy", head: StageSpec | None = None) -> None:
        self._specs = specs
        self._agreed = agreed
        self._pool = ThreadPoolExecutor(max(len(specs), 1))
        spec = head or specs[0]
        self.head = open_head_node(spec)
        self._admin = ExitStack()
        self._admin.enter_context(admin_servers(self.head, spec))
        self.stages: list[Future[None]] = []
        self.faults: list[ZppError] = []
        self.broken = threading.Event()
        self.head.on_fault(self._record_fault)

    def start(self, apart_s: float = 0.0) -> None:
        for spec in self._specs:
            self.stages.append(self._pool.submit(run_stage, spec))
            time.sleep(apart_s)

    def gather(self) -> None:
        self.head.gather({"model": self._agreed})

    def ask_until_answered(
        self, method: str, payload: bytes = b"", *, from_all: bool = False, within_s: float = 30.0
    ) -> list[bytes]:
        """As `ask`, repeated while losses end its epochs."""
        while True:
            with suppress(StaleEpoch):
                return self.ask(method, payload, from_all=from_all, within_s=within_s)
            self.head.wait_until_whole()

    def ask(self, method: str, payload: bytes = b"", *, from_all: bool = False, within_s: float = 10.0) -> list[bytes]:
        return self.head.call(method, payload, from_all=from_all).result(within_s)

    def close(self) -> None:
        self._admin.close()
        self.head.stop("the test is over")
        self.head.close()
        self._pool.shutdown()

    def _record_fault(self, fault: ZppError) -> None:
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

    def restart(self, *stages: int) -> None:
        """Start stages that have ended again; their logs are continued."""
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
    """As `threads`, with processes. At the end the head sends a stop, as real heads do."""
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
        within: changes the command line so that it runs elsewhere, for instance on another host.
    """
    with log.open("ab" if append else "wb") as output:
        return subprocess.Popen(
            within([sys.executable, __file__, role, spec.to_json()]),
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), *_inherited_path()))},
        )  # fmt: skip


def _inherited_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def run_head(spec: StageSpec) -> None:
    """A head that gathers the stages, prints that, and waits."""
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


def run_learning_head(spec: StageSpec) -> None:
    """A head that has the stages learn something, prints their answers, and waits."""
    head = open_head_node(spec)
    head.gather({"model": "toy"})
    answers = head.set_up("learn", b"this", timeout_s=10).result(20)
    print("learnt", *(answer.decode() for answer in answers), flush=True)
    threading.Event().wait()


PAYLOAD_BYTES = 1 << 16


def run_asking_head(spec: StageSpec) -> None:
    """A head that asks for step after step, checks every byte of the answers, and prints how many were right."""
    head = open_head_node(spec)
    try:
        head.gather({"model": "toy"})
        for number in itertools.count():
            payload = random.Random(number).randbytes(PAYLOAD_BYTES)
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
    run = {"asking head": run_asking_head, "learning head": run_learning_head}.get(role, run_head)
    child.run_child("head", lambda: run(spec_from_argv(sys.argv)))
