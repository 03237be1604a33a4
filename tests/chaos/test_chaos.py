# SPDX-License-Identifier: Apache-2.0
"""Random faults under 16 streams: no request fails, no token differs from an undisturbed run, and memory does not grow.

The faults are injected in `run-stage` commands, on one host and on a host each, and in `serve`: in each for some
seconds by default. `ZPP_CHAOS_SECONDS=3600` makes it an hour, `-k serve` chooses, `ZPP_CHAOS_ENGINE=vllm` uses vLLM,
`ZPP_CHAOS_SEED` repeats a run. The result is a table on stderr, and in the file that `ZPP_CHAOS_REPORT` names.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from conftest import Ran
from killer import Commands, Killer, Pipeline, ServeCommand, resident_bytes
from netns import PORT_BASE, network, why_not
from served import Served
from stages import free_base_port, started, wait_until_ready

from zpptool.config.endpoints import plan_endpoints
from zpptool.wire.security.key_files import generate, write_key_files

pytest.importorskip("torch")

SECONDS = float(os.environ.get("ZPP_CHAOS_SECONDS", "12"))
SEED = int(os.environ.get("ZPP_CHAOS_SEED", "0"))
ENGINE = os.environ.get("ZPP_CHAOS_ENGINE", "transformers")
STREAMS = 16
PROMPTS = 24
TOKENS = 48
STAGES = 3
API_PORT = 8000
READY_S = 240 if ENGINE == "transformers" else 600
QUIET_S = (1.0, 6.0) if ENGINE == "transformers" else (10.0, 40.0)
"""Seconds between two faults: a process that is killed repeatedly before it has loaded is given up, and vLLM takes ten
seconds and more to load."""
AFTER_S = 300
"""Seconds that the last streams may take after the last fault, on a busy machine."""
GROWTH = 1.5
FEWEST_FAULTS = 3
TIMEOUTS = ("--beat-timeout", 2 if ENGINE == "transformers" else 20, "--recovery-deadline", AFTER_S)
VLLM = ("--", "--enforce-eager", "--dtype", "float32", "--max-model-len", 256, "--kv-cache-memory-bytes", 64 << 20)
HOW = ("--engine", ENGINE, *TIMEOUTS, *(VLLM if ENGINE == "vllm" else ()))

Run = Callable[[Path, Path], AbstractContextManager[tuple[str, Pipeline, Callable[[], str]]]]

pytestmark = pytest.mark.timeout(SECONDS + 4 * READY_S)


@dataclass
class StreamResults:
    """The results of all streams."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    tokens: int = 0
    different: int = 0
    longest_stall_s: float = 0.0


class Streams:
    """Clients that send requests all the time, and compare the responses."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.results = StreamResults()
        self.undisturbed: dict[int, list[int]] = {}
        self._threads: list[threading.Thread] = []

    def record_undisturbed(self) -> None:
        with httpx.Client(base_url=self._url, timeout=AFTER_S, trust_env=False) as client:
            for number in range(PROMPTS):
                self.undisturbed[number] = self._complete(client, number)

    def start(self) -> None:
        for place in range(STREAMS):
            thread = threading.Thread(target=self._run, args=(random.Random(1000 + place),), daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(AFTER_S)
            assert not thread.is_alive(), "a stream hangs"

    def _run(self, chance: random.Random) -> None:
        with httpx.Client(base_url=self._url, timeout=AFTER_S, trust_env=False) as client:
            while not self._over.is_set():
                number = chance.randrange(PROMPTS)
                try:
                    tokens = self._complete(client, number)
                except (httpx.HTTPError, AssertionError) as fault:
                    with self._lock:
                        self.results.requests += 1
                        self.results.failures.append(repr(fault))
                    continue
                with self._lock:
                    self.results.requests += 1
                    self.results.tokens += len(tokens)
                    self.results.different += tokens != self.undisturbed[number]

    def _complete(self, client: httpx.Client, number: int) -> list[int]:
        body = {
            "prompt": [2 + number, 50, 60 + number, 7], "max_tokens": TOKENS, "ignore_eos": True,
            "temperature": number % 2, "seed": number, "stream": True, "return_token_ids": True,
        }  # fmt: skip
        tokens: list[int] = []
        last = time.monotonic()
        with client.stream("POST", "/v1/completions", json=body) as lines:
            assert lines.status_code == httpx.codes.OK, lines.status_code
            for line in lines.iter_lines():
                now = time.monotonic()
                with self._lock:
                    self.results.longest_stall_s = max(self.results.longest_stall_s, now - last)
                last = now
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    tokens += event["choices"][0].get("token_ids") or []
        assert len(tokens) == TOKENS, f"{len(tokens)} tokens"
        return tokens


@contextmanager
def by_run_stage(split: Path, logs: Path) -> Iterator[tuple[str, Pipeline, Callable[[], str]]]:
    """A command for each stage: the URL of the API, where faults are injected, and a log that has the recoveries."""
    base = free_base_port(STAGES + 2)
    places = [("--base-port", base, "--port", base + STAGES + 1)] * STAGES
    with running(Commands(directories(split, places), logs)) as pipeline:
        yield pipeline


@contextmanager
def by_hosts(split: Path, logs: Path) -> Iterator[tuple[str, Pipeline, Callable[[], str]]]:
    """The same on a host each; the block runs on stage 0's."""
    if why_not():
        pytest.skip(why_not())
    with network(STAGES) as hosts, hosts.inside(0):
        files = write_key_files(generate(STAGES), logs / "keys")
        places = [
            ("--bind", link.bind, "--connect", link.connect, "--keys", keys, "--port", API_PORT)
            for link, keys in zip(plan_endpoints(STAGES, PORT_BASE, hosts.addresses), files, strict=True)
        ]
        with running(Commands(directories(split, places), logs, hosts)) as pipeline:
            yield pipeline


def directories(split: Path, places: Sequence[Sequence[object]]) -> list[list[object]]:
    """The arguments of a `run-stage` for each directory."""
    return [[split / f"stage_{stage}", *place, *HOW] for stage, place in enumerate(places)]


@contextmanager
def running(commands: Commands) -> Iterator[tuple[str, Pipeline, Callable[[], str]]]:
    """Commands that are ready."""
    arguments = commands.arguments[0]
    url = f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}"
    with started(commands.logs, commands.arguments, commands.argv) as commands.stages:
        first = commands.stages[0]
        wait_until_ready(url, commands.stages, READY_S)
        yield url, commands, first.text


@contextmanager
def by_serve(split: Path, logs: Path) -> Iterator[tuple[str, Pipeline, Callable[[], str]]]:
    """One command for all of them."""
    one = Served(logs, "--pipeline-dir", split, "--log-dir", logs, *HOW)
    try:
        one.until_ready(within_s=READY_S)
        yield one.url, ServeCommand(one), (logs / "generation-1" / "head.log").read_text
    finally:
        one.close()


@pytest.fixture
def model(tiny_model: Callable[..., Path], request: pytest.FixtureRequest) -> Path:
    """A model whose tokens are computed quickly, and differ when anything does."""
    if ENGINE == "vllm":
        speaker: Path = request.getfixturevalue("speaker")
        return speaker
    return tiny_model("llama", layers=6, initializer_range=0.5)


@pytest.mark.parametrize(
    "run", [*(pytest.param(run, marks=pytest.mark.long) for run in (by_run_stage, by_hosts)), by_serve]
)
def test_faults_at_random_under_sixteen_streams(
    run: Run,
    model: Path,
    tmp_path: Path,
    zpptool: Callable[..., Ran],
    record_property: Callable[[str, object], None],
) -> None:
    split = tmp_path / "stages"
    assert zpptool("split", model, "--num-stages", STAGES, "-o", split).code == 0
    with run(split, tmp_path) as (url, pipeline, head_log):
        streams, killer = Streams(url), Killer(pipeline, STAGES, random.Random(SEED))
        streams.record_undisturbed()
        before = resident_bytes(pipeline)
        streams.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or killer.done.total() < FEWEST_FAULTS:
            time.sleep(killer.random.uniform(*QUIET_S))
            killer.inject()
        streams.end()
        after = resident_bytes(pipeline)
        rows = figures(streams.results, killer, before, after)
        for name, value in rows:
            record_property(name, value)
        table = report(rows, streams.results.failures)
        assert streams.results.failures == [], table
        assert streams.results.different == 0, table
        assert streams.results.requests >= STREAMS, table
        assert after < before * GROWTH, table
        assert "recovered: the ring is whole again" in head_log(), table


def figures(results: StreamResults, killer: Killer, before: int, after: int) -> list[tuple[str, object]]:
    """The results, by name."""
    return [
        ("seed", SEED),
        *(("faults: " + name, count) for name, count in sorted(killer.done.items())),
        ("requests", results.requests),
        ("failed", len(results.failures)),
        ("tokens compared", results.tokens),
        ("answers that differ", results.different),
        ("longest stall", f"{results.longest_stall_s:.1f} s"),
        ("memory before", f"{before / 2**20:.0f} MiB"),
        ("memory after", f"{after / 2**20:.0f} MiB"),
    ]


def report(rows: Sequence[tuple[str, object]], failures: Sequence[str]) -> str:
    """The results as a table, and the first failures."""
    table = "\n".join(f"{name:<40}{value!s:>14}" for name, value in rows)
    print(f"\n{table}", file=sys.stderr)
    if os.environ.get("ZPP_CHAOS_REPORT"):
        Path(os.environ["ZPP_CHAOS_REPORT"]).write_text(table + "\n")
    return table + "".join(f"\n{failure}" for failure in failures[:5])
