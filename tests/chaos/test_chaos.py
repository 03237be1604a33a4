# SPDX-License-Identifier: Apache-2.0
"""Random faults under 16 streams: no request fails, no token differs from a quiet run, and nothing grows.

Done to `run-stage` commands and to `serve`, to each for a moment by default; `ZPP_CHAOS_SECONDS=3600` makes it an hour,
`-k serve` chooses, `ZPP_CHAOS_SEED` repeats one. The verdict is a table on stderr, and in the file that
`ZPP_CHAOS_REPORT` names.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from conftest import Ran
from killer import Commands, Household, Killer, Pipeline, resident_bytes
from served import Served
from stages import free_base_port, started, wait_until_ready

pytest.importorskip("torch")

SECONDS = float(os.environ.get("ZPP_CHAOS_SECONDS", "12"))
SEED = int(os.environ.get("ZPP_CHAOS_SEED", "0"))
STREAMS = 16
PROMPTS = 24
TOKENS = 48
STAGES = 3
READY_S = 240
CALM_S = (1.0, 6.0)
"""How long it is quiet between two faults."""
AFTER_S = 300
"""How long the last streams may take after the last fault, on a busy machine."""
GROWTH = 1.5
FEWEST_FAULTS = 3
PATIENCE = ("--beat-timeout", 2, "--recovery-deadline", AFTER_S)

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
    api = base + STAGES + 1
    words: list[list[object]] = [
        [split / f"stage_{stage}", "--base-port", base, "--port", api, "--engine", "transformers", *PATIENCE]
        for stage in range(STAGES)
    ]
    url = f"http://127.0.0.1:{api}"
    with started(logs, words) as stages:
        wait_until_ready(url, stages, READY_S)
        yield url, Commands(stages, words, logs), stages[0].text


@contextmanager
def by_serve(split: Path, logs: Path) -> Iterator[tuple[str, Pipeline, Callable[[], str]]]:
    """One command for all of them."""
    one = Served(logs, "--pipeline-dir", split, *PATIENCE, "--log-dir", logs)
    try:
        one.until_ready()
        yield one.url, Household(one), (logs / "epoch-1" / "head.log").read_text
    finally:
        one.close()


@pytest.mark.parametrize("run", [by_run_stage, by_serve])
def test_faults_at_random_under_sixteen_streams(
    run: Run, tiny_model: Callable[..., Path], tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    split = tmp_path / "stages"
    model = tiny_model("llama", layers=6, initializer_range=0.5)
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
