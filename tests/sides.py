# SPDX-License-Identifier: Apache-2.0
"""Two servers of one model, started together: vLLM's own unsplit engine, and a pipeline of `zpptool run-stage`.

Both get the same engine arguments, so they must give the same answers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from stages import Stage, free_base_port, wait_until_ready

from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec

READY_S = 1200


@dataclass(frozen=True)
class Sides:
    """Clients of both servers.

    Attributes:
        unsplit: client of the unsplit engine.
        pipeline: client of the stages.
        stages: the pipeline's processes, in order.
    """

    unsplit: httpx.Client
    pipeline: httpx.Client
    stages: Sequence[Stage]

    def ask(self, path: str, **body: Any) -> tuple[Any, Any]:
        """Send one request to both; returns both answers.

        Raises:
            AssertionError: one of them is not 200.
        """
        answers = [client.post(path, json=body) for client in (self.unsplit, self.pipeline)]
        for answer in answers:
            assert answer.status_code == httpx.codes.OK, answer.text
        return answers[0].json(), answers[1].json()


class Reference(Stage):
    """The unsplit engine, as a process like a stage."""

    def __init__(self, log: Path, spec: StageSpec, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zpptool.engines.vllm.reference", spec.to_json()],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            )  # fmt: skip
        self._seen = set()


@contextmanager
def both_sides(
    directory: Path,
    model: Path,
    ranges: Sequence[tuple[int, int]],
    arguments: Sequence[str],
    env: Mapping[str, str],
    *,
    unsplit: Sequence[str] = (),
    pipeline: Sequence[str] = (),
) -> Iterator[Sides]:
    """Start the unsplit engine and the pipeline, wait for both, and leave nothing behind.

    Args:
        arguments: the engine arguments of both; `unsplit` and `pipeline` are extra arguments of one side.
    """
    base = free_base_port(len(ranges) + 3)
    api, unsplit_api = base + len(ranges) + 1, base + len(ranges) + 2
    spec = StageSpec(
        engine=Engine.VLLM, model=str(model), partition=((0, ranges[-1][1]),), stage=0, bind="", connect="",
        dtype="float32", api_port=unsplit_api, engine_args=(*arguments, *unsplit),
    )  # fmt: skip
    seen: list[Stage] = [Reference(directory / "unsplit.log", spec, env)]
    options = ("--ranges", *(f"{start}-{end}" for start, end in ranges), "--dtype", "float32")
    os.environ.update(env)
    try:
        for stage in range(len(ranges)):
            links = ("--stage-idx", stage, "--base-port", base, "--port", api, "--", *arguments, *pipeline)
            seen.append(Stage(directory / f"stage-{stage}.log", "--model", model, *options, *links))
        urls = [f"http://127.0.0.1:{port}" for port in (unsplit_api, api)]
        for url in urls:
            wait_until_ready(url, seen, READY_S)
        clients = [httpx.Client(base_url=url, timeout=240, trust_env=False) for url in urls]
        with clients[0], clients[1]:
            yield Sides(clients[0], clients[1], seen[1:])
    finally:
        for name in env:
            os.environ.pop(name, None)
        end_all(seen)


def end_all(processes: Sequence[Stage]) -> None:
    """End the processes and their children."""
    for process in processes:
        process.look()
        process.process.terminate()
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.process.kill()
        for left in process.left_behind():
            left.kill()
