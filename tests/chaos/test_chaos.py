# SPDX-License-Identifier: Apache-2.0
"""Random faults under 16 streams: no request fails, no token differs from a quiet run, and nothing grows.

Done to `run-stage` commands, on one host and on a host each, and to `serve`; to each for a moment by default.
`ZPP_CHAOS_SECONDS=3600` makes it an hour, `-k serve` chooses, `ZPP_CHAOS_ENGINE=vllm` does it to vLLM, `ZPP_CHAOS_SEED`
repeats one. The verdict is a table on stderr, and in the file that `ZPP_CHAOS_REPORT` names.
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
from killer import Commands, Household, Killer, Pipeline, resident_bytes
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
CALM_S = (1.0, 6.0) if ENGINE == "transformers" else (10.0, 40.0)
"""How long it is quiet between two faults: what is killed again and again before it has loaded is given up, and vLLM
takes ten seconds for that and more."""
AFTER_S = 300
"""How long the last streams may take after the last fault, on a busy machine."""
GROWTH = 1.5
FEWEST_FAULTS = 3
PATIENCE = ("--beat-timeout", 2 if ENGINE == "transformers" else 20, "--recovery-deadline", AFTER_S)
VLLM = ("--", "--enforce-eager", "--dtype", "float32", "--max-model-len", 256, "--kv-cache-memory-bytes", 64 << 20)
HOW = ("--engine", ENGINE, *PATIENCE, *(VLLM if ENGINE == "vllm" else ()))

Run = Callable[[Path, Path], AbstractContextManager[tuple[str, Pipeline, Callable[[], str]]]]

pytestmark = pytest.mark.timeout(SECONDS + 4 * READY_S)


@dataclass
class Verdict:
    """What the streams have seen."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    tokens: int = 0
    different: int = 0
    longest_stall_s: float = 0.0


class Streams:
    """Clients that ask again and again, and compare."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.verdict = Verdict()
        self.quiet: dict[int, list[int]] = {}
        self._threads: list[threading.Thread] = []

    def learn(self) -> None:
        with httpx.Client(base_url=self._url, timeout=AFTER_S, trust_env=False) as client:
            for number in range(PROMPTS):
                self.quiet[number] = self._ask(client, number)

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
                    tokens = self._ask(client, number)
                except (httpx.HTTPError, AssertionError) as fault:
                    with self._lock:
                        self.verdict.requests += 1
                        self.verdict.failures.append(repr(fault))
                    continue
                with self._lock:
                    self.verdict.requests += 1
                    self.verdict.tokens += len(tokens)
                    self.verdict.different += tokens != self.quiet[number]

    def _ask(self, client: httpx.Client, number: int) -> list[int]:
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
                    self.verdict.longest_stall_s = max(self.verdict.longest_stall_s, now - last)
                last = now
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    tokens += event["choices"][0].get("token_ids") or []
        assert len(tokens) == TOKENS, f"{len(tokens)} tokens"
        return tokens


@contextmanager
def by_run_stage(split: Path, logs: Path) -> Iterator[tuple[str, Pipeline, Callable[[], str]]]:
    """A command for each stage: its API, what is struck, and what says that it has recovered."""
    base = free_base_port(STAGES + 2)
    places = [("--base-port", base, "--port", base + STAGES + 1)] * STAGES
    with commanded(Commands(directories(split, places), logs)) as what:
        yield what


@contextmanager
def by_hosts(split: Path, logs: Path) -> Iterator[tuple[str, Pipeline, Callable[[], str]]]:
    """The same, on a host each; what is in the block is on stage 0's."""
    if why_not():
        pytest.skip(why_not())
    with network(STAGES) as hosts, hosts.inside(0):
        files = write_key_files(generate(STAGES), logs / "keys")
        places = [
            ("--bind", link.bind, "--connect", link.connect, "--keys", keys, "--port", API_PORT)
            for link, keys in zip(plan_endpoints(STAGES, PORT_BASE, hosts.addresses), files, strict=True)
        ]
        with commanded(Commands(directories(split, places), logs, hosts)) as what:
            yield what


def directories(split: Path, places: Sequence[Sequence[object]]) -> list[list[object]]:
    """The words of a `run-stage` for each directory."""
    return [[split / f"stage_{stage}", *place, *HOW] for stage, place in enumerate(places)]


@contextmanager
def commanded(commands: Commands) -> Iterator[tuple[str, Pipeline, Callable[[], str]]]:
    """Commands that are ready."""
    words = commands.words[0]
    url = f"http://127.0.0.1:{words[words.index('--port') + 1]}"
    with started(commands.logs, commands.words, commands.line) as commands.stages:
        first = commands.stages[0]
        wait_until_ready(url, commands.stages, READY_S)
        yield url, commands, first.text


@contextmanager
def by_serve(split: Path, logs: Path) -> Iterator[tuple[str, Pipeline, Callable[[], str]]]:
    """One command for all of them."""
    one = Served(logs, "--pipeline-dir", split, "--log-dir", logs, *HOW)
    try:
        one.until_ready(within_s=READY_S)
        yield one.url, Household(one), (logs / "epoch-1" / "head.log").read_text
    finally:
        one.close()


@pytest.fixture
def model(tiny_model: Callable[..., Path], request: pytest.FixtureRequest) -> Path:
    """Its tokens come quickly, and differ when anything does."""
    if ENGINE == "vllm":
        speaker: Path = request.getfixturevalue("speaker")
        return speaker
    return tiny_model("llama", layers=6, initializer_range=0.5)


@pytest.mark.parametrize(
    "run", [*(pytest.param(run, marks=pytest.mark.long) for run in (by_run_stage, by_hosts)), by_serve]
)
def test_faults_at_random_under_sixteen_streams(
    run: Run, model: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    split = tmp_path / "stages"
    assert zpptool("split", model, "--num-stages", STAGES, "-o", split).code == 0
    with run(split, tmp_path) as (url, pipeline, head_says):
        streams, killer = Streams(url), Killer(pipeline, STAGES, random.Random(SEED))
        streams.learn()
        before = resident_bytes(pipeline)
        streams.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or killer.done.total() < FEWEST_FAULTS:
            time.sleep(killer.chance.uniform(*CALM_S))
            killer.strike()
        streams.end()
        after = resident_bytes(pipeline)
        table = told(streams.verdict, killer, before, after)
        assert streams.verdict.failures == [], table
        assert streams.verdict.different == 0, table
        assert streams.verdict.requests >= STREAMS, table
        assert after < before * GROWTH, table
        assert "recovered: the ring is whole again" in head_says(), table


def told(verdict: Verdict, killer: Killer, before: int, after: int) -> str:
    """The verdict, as a table."""
    rows = [
        ("seed", SEED),
        *(("faults: " + name, count) for name, count in sorted(killer.done.items())),
        ("requests", verdict.requests),
        ("failed", len(verdict.failures)),
        ("tokens compared", verdict.tokens),
        ("answers that differ", verdict.different),
        ("longest stall", f"{verdict.longest_stall_s:.1f} s"),
        ("memory before", f"{before / 2**20:.0f} MiB"),
        ("memory after", f"{after / 2**20:.0f} MiB"),
    ]
    table = "\n".join(f"{name:<40}{value!s:>14}" for name, value in rows)
    print(f"\n{table}", file=sys.stderr)
    if os.environ.get("ZPP_CHAOS_REPORT"):
        Path(os.environ["ZPP_CHAOS_REPORT"]).write_text(table + "\n")
    return table + "".join(f"\n{failure}" for failure in verdict.failures[:5])
