# SPDX-License-Identifier: Apache-2.0
"""The sides of `pipeline.py`: unsplit vLLM, vLLM's own pipeline parallelism, and ours, as servers of one API.

All sides get the same engine arguments, the same layer ranges, one OpenMP thread a stage (the unsplit engine: one a
core) and the same cores for them, by `VLLM_CPU_OMP_THREADS_BIND`.

Stock vLLM 0.32 dies as an eager pipeline on a CPU; `eager_worker.py` gives it the buffers that it forgets.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from zpptool.partition import Partition, vllm_layer_partition

READY_S = 900
KV_BYTES = 512 << 20
ENGINE = (
    "--max-model-len", "512", "--max-num-seqs", "64", "--block-size", "128",
    "--kv-cache-memory-bytes", str(KV_BYTES), "--no-enable-prefix-caching",
)  # fmt: skip


@dataclass
class Side:
    """One running side.

    Attributes:
        name: `unsplit`, `native` or `ours`, and how many stages.
        url: its API.
        processes: what was started for it.
    """

    name: str
    url: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)

    def tree(self) -> list[psutil.Process]:
        """All its processes."""
        roots = [psutil.Process(process.pid) for process in self.processes]
        return [one for root in roots for one in (root, *root.children(recursive=True))]

    def processor_s(self) -> float:
        """Processor seconds that all its processes have used so far."""
        return sum(sum(one.cpu_times()[:2]) for one in self.tree())

    def wait_until_ready(self) -> None:
        """Return when its API answers."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            for process, log in zip(self.processes, self.logs, strict=True):
                if process.poll() is not None:
                    raise SystemExit(f"{self.name} has ended:\n{log.read_text(errors='replace')[-3000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise SystemExit(f"{self.name} is not ready after {READY_S} s: see {self.logs}")

    def stop(self) -> None:
        """End it, and all that it started."""
        tree = self.tree() if all(process.poll() is None for process in self.processes) else []
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        for left in psutil.wait_procs(tree, timeout=5)[1]:
            left.kill()


def start_unsplit(model: Path, engine: Sequence[str]) -> Side:
    """`vllm serve MODEL` on all cores."""
    port = free_port()
    side = Side("unsplit", f"http://127.0.0.1:{port}")
    cores = ",".join(map(str, _cores()))
    _start(side, [*_vllm_serve(model, port), *engine], {"VLLM_CPU_OMP_THREADS_BIND": cores})
    return side


def start_native(model: Path, ranges: Partition, engine: Sequence[str]) -> Side:
    """`vllm serve MODEL --pipeline-parallel-size N`: processes of one host, gloo."""
    port = free_port()
    side = Side(f"native {len(ranges)}", f"http://127.0.0.1:{port}")
    env = {
        "VLLM_PP_LAYER_PARTITION": vllm_layer_partition(ranges),
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(str(core) for core in cores_of_stages(len(ranges))),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    pipeline = ["--pipeline-parallel-size", str(len(ranges)), "--distributed-executor-backend", "mp"]
    if "--enforce-eager" in engine:
        pipeline += ["--worker-cls", "eager_worker.EagerWorker"]
    _start(side, [*_vllm_serve(model, port), *pipeline, *engine], env)
    return side


def start_ours(
    model: Path, ranges: Partition, engine: Sequence[str], more: Sequence[str] = (), name: str = "ours"
) -> Side:
    """`zpptool run-stage` for each stage, over tcp on loopback; `more` are words before the `--`."""
    api = free_port()
    base = free_port(len(ranges) + 1)
    side = Side(f"{name} {len(ranges)}", f"http://127.0.0.1:{api}")
    places = ("--ranges", *map(str, ranges), "--base-port", str(base), "--port", str(api))
    for stage, core in enumerate(cores_of_stages(len(ranges))):
        env = {"VLLM_CPU_OMP_THREADS_BIND": str(core)}
        words = [sys.executable, "-m", "zpptool", "run-stage", str(model), "--stage-idx", str(stage)]
        _start(side, [*words, *places, *more, "--", *engine], env)
    return side


def cores_of_stages(num_stages: int) -> list[int]:
    """One core a stage, in turn."""
    cores = _cores()
    return [cores[stage % len(cores)] for stage in range(num_stages)]


def free_port(count: int = 1) -> int:
    """A port that is free now, with `count - 1` free ones behind it."""
    for base in range(22000 + os.getpid() * 7 % 9000, 32000):
        probes = [socket.socket() for _ in range(count)]
        try:
            for place, probe in enumerate(probes):
                probe.bind(("127.0.0.1", base + place))
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
        if base not in _given:
            _given.update(range(base, base + count))
            return base
    raise SystemExit("no free ports")


_given: set[int] = set()


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _vllm_serve(model: Path, port: int) -> list[str]:
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    return [*words, "--host", "127.0.0.1", "--port", str(port)]


def _start(side: Side, words: Sequence[str], env: Mapping[str, str]) -> None:
    log = Path(tempfile.mkstemp(prefix=f"zpp-{side.name.replace(' ', '-')}-", suffix=".log")[1])
    with log.open("wb") as output:
        side.processes.append(
            subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **env},
            )
        )
    side.logs.append(log)
