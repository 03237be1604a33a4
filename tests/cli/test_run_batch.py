# SPDX-License-Identifier: Apache-2.0
"""`zpptool run-batch` over a running server: results, exit codes, refusals, interrupts, and starts after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from batch_forks import Forks, forks
from batches import AnsweringServer, answering_server, entries, request, write_input
from commands import typed_here
from conftest import Ran

from zpptool.batch.workplace import occupied, workplace_of

LINES = 400
MANY_KILLS = int(os.environ.get("ZPP_BATCH_KILLS", "600"))
PROBE = "a"
"""The prompt by which a run finds out whether the engine has priorities."""


@pytest.fixture
def answering() -> Iterator[AnsweringServer]:
    with answering_server() as server:
        yield server


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Ran]:
    """Run `zpptool` in this process, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    return typed_here(monkeypatch, capsys)


def words(server: AnsweringServer, *more: object) -> list[object]:
    return ["run-batch", "--url", server.url, "-i", "in.jsonl", "-o", "out.jsonl", *more]


def test_a_batch_is_computed_and_summarised(
    here: Callable[..., Ran], answering: AnsweringServer, tmp_path: Path
) -> None:
    write_input(tmp_path / "in.jsonl", 30)
    ran = here(*words(answering, "--json", "--url", f"{answering.url}/v1/"))
    assert ran.code == 0, ran.err
    assert {**ran.json, "seconds": 0, "schema_version": 0} == {
        "schema_version": 0, "done": 30, "failed": 0, "total": 30, "prompt_tokens": 90, "completion_tokens": 120,
        "seconds": 0,
    }  # fmt: skip
    assert len(entries(tmp_path / "out.jsonl")) == 30
    again = here(*words(answering))
    assert again.code == 0
    assert again.out.startswith("30 of 30 lines done, 0 failed; 90 prompt tokens, 120 generated")
    assert {count for prompt, count in answering.seen.items() if prompt != PROBE} == {1}


def test_bad_lines_are_exit_code_1_and_named(
    here: Callable[..., Ran], answering: AnsweringServer, tmp_path: Path
) -> None:
    with write_input(tmp_path / "in.jsonl", 4).open("a") as stream:
        stream.write("oops\n")
    ran = here(*words(answering, "--errors", "bad.jsonl"))
    assert ran.code == 1
    assert "1 lines failed: bad.jsonl has them" in ran.err
    assert [entry["error"]["code"] for entry in entries(tmp_path / "bad.jsonl")] == ["invalid_json_line"]
    assert len(entries(tmp_path / "out.jsonl")) == 4


def test_a_run_continues_with_the_same_only(
    here: Callable[..., Ran], answering: AnsweringServer, tmp_path: Path
) -> None:
    write_input(tmp_path / "in.jsonl", 4)
    assert here(*words(answering)).code == 0
    ran = here(*words(answering, "--default", "temperature=0"))
    assert ran.code == 3
    assert "out.jsonl was begun with another --default (none then, temperature=0 now)" in ran.err
    ran = here(*words(answering, "--errors", "other.jsonl"))
    assert ran.code == 3
    assert "another errors file" in ran.err
    write_input(tmp_path / "in.jsonl", 5)
    ran = here(*words(answering))
    assert ran.code == 3
    assert "another input (4 lines, digest " in ran.err
    assert "--restart" in ran.err
    ran = here(*words(answering, "--restart"))
    assert (ran.code, len(entries(tmp_path / "out.jsonl"))) == (0, 5)


def test_an_output_without_a_journal_is_refused(
    here: Callable[..., Ran], answering: AnsweringServer, tmp_path: Path
) -> None:
    write_input(tmp_path / "in.jsonl", 4)
    (tmp_path / "out.jsonl").write_text("precious\n")
    ran = here(*words(answering))
    assert ran.code == 3
    assert "out.jsonl exists, and has no journal" in ran.err
    assert (tmp_path / "out.jsonl").read_text() == "precious\n"


def test_one_process_writes_an_output_at_a_time(
    here: Callable[..., Ran], answering: AnsweringServer, tmp_path: Path
) -> None:
    write_input(tmp_path / "in.jsonl", 4)
    with occupied(workplace_of(tmp_path / "out.jsonl", None), restart=False):
        ran = here(*words(answering))
    assert (ran.code, "another run-batch is writing out.jsonl" in ran.err) == (1, True)
    assert here(*words(answering)).code == 0


def test_duplicates_and_an_empty_input_are_refused(
    here: Callable[..., Ran], answering: AnsweringServer, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text((json.dumps(request(1)) + "\n") * 2)
    ran = here(*words(answering))
    assert (ran.code, "line 1 and in.jsonl, line 2 have the same custom_id" in ran.err) == (3, True)
    (tmp_path / "in.jsonl").write_text("\n")
    ran = here(*words(answering))
    assert (ran.code, "in.jsonl has no lines" in ran.err) == (3, True)
    assert answering.seen.keys() <= {PROBE}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["MODEL"], "a model and --url are both named"),
        (["--num-stages", "2"], "--num-stages is for a pipeline that is started here"),
        (["--", "--max-model-len", "64"], "engine arguments are for a pipeline that run-batch starts"),
        (["--errors", "out.jsonl"], "--output-file and --errors are the same file"),
        (["--default", "temperature"], "is no NAME=VALUE"),
        (["-i", "absent.jsonl"], "absent.jsonl: no such file"),
        (["--url", "10.0.0.1:8000"], "--url 10.0.0.1:8000 is no URL of a server"),
        (["--url", "http://user:secret@"], "--url http://***@ is no URL of a server"),
        (["-o", "absent/out.jsonl"], "absent is no directory"),
    ],
)
def test_wrong_command_lines_are_refused(
    here: Callable[..., Ran], answering: AnsweringServer, tmp_path: Path, more: list[str], message: str
) -> None:
    write_input(tmp_path / "in.jsonl", 1)
    ran = here(*words(answering), *more)
    assert (ran.code, message in ran.err) == (2, True), ran.err


def start(tmp_path: Path, server: AnsweringServer, *more: str) -> subprocess.Popen[bytes]:
    with (tmp_path / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "zpptool", *map(str, words(server, *more))],
            cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip


def until(condition: Callable[[], object], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.timeout(240)
def test_ctrl_c_ends_in_good_order_and_says_how_to_go_on(answering: AnsweringServer, tmp_path: Path) -> None:
    write_input(tmp_path / "in.jsonl", 60)
    answering.delay_s = 0.5
    run = start(tmp_path, answering)
    try:
        until(lambda: len(answering.seen) > 10)
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130
    finally:
        run.kill()
    log = (tmp_path / "log").read_text()
    assert "stopping when the lines in flight are done" in log
    assert "Run the same command again: it continues." in log
    safe = len(entries(tmp_path / "out.jsonl"))
    assert f"interrupted: {safe} of 60 lines have a result, and all of them are safe" in log
    assert safe == len([prompt for prompt in answering.seen if prompt != PROBE])


def test_an_invariant_run_with_a_preemption_fails_until_it_is_restarted(
    here: Callable[..., Ran], answering: AnsweringServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zpptool.batch.runner.LOAD_S", 0.05)
    write_input(tmp_path / "in.jsonl", 40)
    answering.room, answering.delay_s, answering.preemptions = 100, 0.3, 7

    def preempt() -> None:
        until(lambda: len(answering.seen) > 3)
        answering.preemptions = 8

    thread = threading.Thread(target=preempt)
    thread.start()
    first = here(*words(answering, "--invariant"))
    thread.join()
    answering.delay_s = 0.0
    for ran in (first, here(*words(answering, "--invariant"))):
        assert (ran.code, "so --invariant does not hold for every line" in ran.err) == (1, True)
    assert here(*words(answering, "--invariant", "--restart")).code == 0


def killed_runs(folder: Path, server: AnsweringServer, starts: Forks, kills: int, chance: random.Random) -> int:
    """Kill runners at random moments, at most so many; run to the end; return how many were killed before theirs."""
    folder.mkdir()
    write_input(folder / "in.jsonl", LINES)
    command = ["run-batch", "--url", server.url, "-i", folder / "in.jsonl", "-o", folder / "out.jsonl", "--quiet"]
    server.delay_s = 0.15
    killed = 0
    for _ in range(kills):
        if starts.run(chance.uniform(0.05, 1.2), *command) == 0:
            break
        killed += 1
    server.delay_s = 0.0
    assert starts.run(120, *command) == 0
    found = entries(folder / "out.jsonl")
    assert sorted(entry["custom_id"] for entry in found) == sorted(f"request-{n}" for n in range(LINES))
    assert entries(folder / "out.errors.jsonl") == []
    assert len({entry["id"] for entry in found}) == LINES
    assert len({entry["response"]["body"]["created"] for entry in found}) == 1
    return killed


def answers(folder: Path) -> list[str]:
    """The sorted answers of a run, without what follows from the moment of its first start."""
    return sorted(entry["response"]["body"]["choices"][0]["text"] for entry in entries(folder / "out.jsonl"))


@pytest.mark.timeout(240)
def test_a_runner_that_is_killed_again_and_again_has_every_result_once(
    answering: AnsweringServer, tmp_path: Path
) -> None:
    with forks(tmp_path / "log") as starts:
        assert killed_runs(tmp_path / "killed", answering, starts, 6, random.Random(1)) >= 3
        assert killed_runs(tmp_path / "quiet", answering, starts, 0, random.Random(1)) == 0
    assert answers(tmp_path / "killed") == answers(tmp_path / "quiet")


@pytest.mark.long
@pytest.mark.timeout(2 * 3600)
def test_a_runner_that_is_killed_600_times_has_every_result_once(
    answering: AnsweringServer, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chance, killed, runs = random.Random(2), 0, 0
    with forks(tmp_path / "log") as starts:
        killed_runs(tmp_path / "quiet", answering, starts, 0, chance)
        while killed < MANY_KILLS:
            killed += killed_runs(tmp_path / str(runs), answering, starts, MANY_KILLS - killed, chance)
            assert answers(tmp_path / str(runs)) == answers(tmp_path / "quiet")
            runs += 1
            print(f"{killed} kills in {runs} runs", file=sys.stderr, flush=True)
    record_property("kills of the runner", killed)


def test_standard_input_is_a_batch_too(answering: AnsweringServer, tmp_path: Path) -> None:
    content = write_input(tmp_path / "in.jsonl", 5).read_bytes()
    command = [sys.executable, "-m", "zpptool", "run-batch", "--url", answering.url, "-i", "-", "-o", "out.jsonl"]
    for given in (content, b""):
        done = subprocess.run(command, cwd=tmp_path, input=given, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    assert len(entries(tmp_path / "out.jsonl")) == 5
