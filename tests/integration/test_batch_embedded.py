# SPDX-License-Identifier: Apache-2.0
"""`run-batch` on the embedded engine: over pipelines of its own and a running one, through kills of everything.

`ZPP_BATCH_KILLS` sets how often the long tests kill: 300 times the runner, 100 times the pipeline.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from batch_forks import forks
from batches import entries, sorted_bytes
from conftest import Ran
from served import Served, serving, wait_for

pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(600)

LIVELY = {"initializer_range": 0.5}
"""Random weights this large make a model that does not repeat itself."""
STAGES = 2
RUNNER_KILLS = int(os.environ.get("ZPP_BATCH_KILLS", "300"))
PIPELINE_KILLS = int(os.environ.get("ZPP_BATCH_KILLS", "100"))


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", layers=4, **LIVELY)


def write_requests(path: Path, count: int, tokens: int = 6) -> Path:
    """Completions of token ids: some greedy, some sampled without a seed, some of several kinds that fail."""
    lines = []
    for number in range(count):
        body: dict[str, object] = {"prompt": [2 + number % 250, 50, 60, 7], "max_tokens": tokens, "ignore_eos": True}
        if number % 3 == 0:
            body["temperature"] = 0
        if number % 50 == 49:
            body["top_p"] = 7  # refused
        entry = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/completions", "body": body}
        lines.append(json.dumps(entry) + "\n")
    path.write_text("".join(lines))
    return path


def assert_every_line_once(folder: Path, count: int, name: str = "out") -> None:
    found = [each["custom_id"] for path in (f"{name}.jsonl", f"{name}.errors.jsonl") for each in entries(folder / path)]
    assert sorted(found) == sorted(f"line-{number}" for number in range(count))


def runner(folder: Path, url: str, *more: object) -> list[str]:
    """The words of a run in a folder."""
    words = ["run-batch", "--url", url, "-i", folder / "in.jsonl", "-o", folder / "out.jsonl", "--invariant", *more]
    return list(map(str, words))


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served"), model, "--num-stages", STAGES, "--standby", 1) as command:
        yield command


@pytest.fixture(scope="module")
def undisturbed(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[bytes]]:
    """The results of so many lines without any disturbance."""
    known: dict[int, list[bytes]] = {}

    def results(count: int) -> list[bytes]:
        if count not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            write_requests(folder / "in.jsonl", count)
            with forks(folder / "log") as starts:
                assert starts.run(3600, *runner(folder, served.url)) == 1, (folder / "log").read_text()
            known[count] = sorted_bytes(folder / "out.jsonl")
        return known[count]

    return results


def test_the_answers_are_the_same_for_any_number_of_stages_and_order(
    model: Path, undisturbed: Callable[[int], list[bytes]], tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    """Over a pipeline of its own with other stages, and with the lines in another order."""
    lines = write_requests(tmp_path / "in.jsonl", 150).read_text().splitlines(keepends=True)
    random.Random(3).shuffle(lines)
    (tmp_path / "in.jsonl").write_text("".join(lines))
    words = ["run-batch", model, "--engine", "transformers", "--num-stages", 3, "--invariant", "--json"]
    words += ["-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl"]
    ran = zpptool(*words, timeout_s=240, env={"OMP_NUM_THREADS": "1"})
    assert ran.code == 1, ran.err
    assert {name: ran.json[name] for name in ("done", "failed", "total")} == {"done": 147, "failed": 3, "total": 150}
    assert_every_line_once(tmp_path, 150)
    assert sorted_bytes(tmp_path / "out.jsonl") == undisturbed(150)
    again = zpptool(*words)
    assert (again.code, again.json["done"], "starting" in again.err) == (1, 147, False), "nothing was left to do"


def kill_runners(folder: Path, url: str, kills: int, chance: random.Random, longest_s: float) -> int:
    """Kill so many runners at random moments, then run to the end; return how many were killed before theirs."""
    killed = 0
    with forks(folder / "log") as starts:
        for _ in range(kills):
            code = starts.run(chance.uniform(0.0, longest_s), *runner(folder, url))
            assert code in (-signal.SIGKILL, 1), (folder / "log").read_text()[-3000:]
            killed += code == -signal.SIGKILL
            if code != -signal.SIGKILL:
                break
        assert starts.run(3600, *runner(folder, url)) == 1, (folder / "log").read_text()[-3000:]
    return killed


def test_runners_that_are_killed_lose_nothing_and_write_nothing_twice(
    served: Served, undisturbed: Callable[[int], list[bytes]], tmp_path: Path
) -> None:
    write_requests(tmp_path / "in.jsonl", 150)
    killed = kill_runners(tmp_path, served.url, 6, random.Random(1), 1.0)
    assert killed >= 3
    assert_every_line_once(tmp_path, 150)
    assert sorted_bytes(tmp_path / "out.jsonl") == undisturbed(150)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_runners_that_are_killed_300_times_lose_nothing(
    served: Served,
    undisturbed: Callable[[int], list[bytes]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    chance, killed, rounds = random.Random(2), 0, 0
    while killed < RUNNER_KILLS:
        folder = tmp_path / str(rounds)
        folder.mkdir()
        write_requests(folder / "in.jsonl", 500)
        killed += kill_runners(folder, served.url, min(100, RUNNER_KILLS - killed), chance, 1.2)
        assert_every_line_once(folder, 500)
        assert sorted_bytes(folder / "out.jsonl") == undisturbed(500)
        rounds += 1
        print(f"{killed} kills in {rounds} runs", file=sys.stderr, flush=True)
    record_property("kills of the runner", killed)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_heads_stages_and_fronts_that_are_killed_lose_nothing(
    model: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """One run over one front that is killed and started again at its port, as are its head and its stages."""
    chance, kills, count = random.Random(3), {"front": 0, "head": 0, "stage": 0}, 250
    port = free_port()
    front = start_front(model, tmp_path, port)
    rounds = 0
    try:
        while sum(kills.values()) < PIPELINE_KILLS:
            folder = tmp_path / f"run{rounds}"
            folder.mkdir()
            rounds += 1
            write_requests(folder / "in.jsonl", count, tokens=24)
            with (folder / "log").open("ab") as log:
                run = subprocess.Popen(
                    [sys.executable, "-m", "zpptool", *runner(folder, front.url)], stdout=log, stderr=log
                )
            while run.poll() is None and sum(kills.values()) < PIPELINE_KILLS:
                wait_for(lambda: is_ready(front) or run.poll() is not None)  # noqa: B023
                time.sleep(chance.uniform(0.5, 6.0))
                kind = chance.choices(("front", "head", "stage"), (1, 2, 6))[0]
                if kind == "front":
                    front.close()
                    front = start_front(model, tmp_path, port)
                    kills[kind] += 1
                else:
                    places = [place for place in front.look() if place.startswith(kind)]
                    if places:
                        with suppress(psutil.NoSuchProcess):
                            front.look()[chance.choice(places)].kill()
                            kills[kind] += 1
            assert run.wait(1800) == 1, (folder / "log").read_text()[-3000:]
            assert_every_line_once(folder, count)
            if rounds == 1:
                first = sorted_bytes(folder / "out.jsonl")
            assert sorted_bytes(folder / "out.jsonl") == first
            print(f"{kills} in {rounds} runs", file=sys.stderr, flush=True)
        quiet = tmp_path / "quiet"
        quiet.mkdir()
        write_requests(quiet / "in.jsonl", count, tokens=24)
        with forks(quiet / "log") as starts:
            assert starts.run(3600, *runner(quiet, front.url)) == 1
        assert sorted_bytes(quiet / "out.jsonl") == first
    finally:
        front.close()
    for kind, number in kills.items():
        record_property(f"kills of the {kind}", number)


def start_front(model: Path, folder: Path, port: int) -> Served:
    """A front at a port; its pipeline starts while requests wait."""
    logs = folder / f"front{time.monotonic_ns()}"
    logs.mkdir()
    front = Served(logs, model, "--num-stages", STAGES, "--standby", 1, "--port", port, "--max-restarts", 50)
    wait_for(lambda: front.url)
    return front


def is_ready(front: Served) -> bool:
    """Whether a front's pipeline answers: one that is killed while it starts makes no progress."""
    try:
        return httpx.get(f"{front.url}/health", timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def free_port() -> int:
    """A port that is free now."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as opened:
        return opened.getsockname()[1]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_million_lines_take_less_than_400_mb(tmp_path: Path) -> None:
    """All but the last ten lines have a result already, as a journal says whose output is sparse."""
    script = Path(__file__).parents[1] / "batch_memory.py"
    done = subprocess.run(
        [sys.executable, script, str(tmp_path)], capture_output=True, text=True, timeout=3500, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1])
    print(f"peak memory {peak / 1e6:.0f} MB", file=sys.stderr)
    assert peak < 400e6, done.stdout
