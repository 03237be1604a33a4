# SPDX-License-Identifier: Apache-2.0
"""The runner against a real server: failures of lines, of the server, and of the disk; order; stops."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from batches import AnsweringServer, FaultyFiles, answering_server, entries, raw_lines, request
from commands import typed_here
from conftest import Ran

from zpptool.batch.file_operations import FileOperations
from zpptool.batch.journal import Journal
from zpptool.batch.runner import Runner, RunRules
from zpptool.batch.server import BACKOFF, BatchServer, open_client
from zpptool.errors import ExitCode, ZppError

STARTED = 1_700_000_000
RULES = RunRules(STARTED, limit=8, fixed=True)


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpptool.batch.server.BACKOFF", replace(BACKOFF, first_s=0.01, longest_s=0.05))


@pytest.fixture
def answering() -> Iterator[AnsweringServer]:
    with answering_server() as server:
        yield server


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Ran]:
    """Run `zpptool` in this process, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    return typed_here(monkeypatch, capsys)


@dataclass
class Place:
    """A run in a directory, which is started again by each call of `start`."""

    folder: Path
    url: str
    retry_for_s: float = 20.0
    files: FileOperations = field(default_factory=FileOperations)

    def start(
        self,
        lines: list[Any],
        rules: RunRules = RULES,
        on_tick: Callable[[Runner, int], None] = lambda _runner, _in_flight: None,
    ) -> bool:
        async def run() -> bool:
            (self.folder / "journal").mkdir(exist_ok=True)
            names = (self.folder / "journal", self.folder / "out", self.folder / "errors")
            with closing(Journal(*names, self.files)) as journal:
                async with open_client(self.url, None) as client:
                    server = BatchServer(client, self.retry_for_s)
                    runner = Runner(raw_lines(lines), journal, server, rules, lambda n: on_tick(runner, n))
                    return await runner.run()

        return asyncio.run(run())

    @property
    def out(self) -> list[str]:
        return [entry["custom_id"] for entry in entries(self.folder / "out")]

    @property
    def errors(self) -> dict[str | None, Any]:
        return {entry["custom_id"]: entry for entry in entries(self.folder / "errors")}


@pytest.fixture
def place(tmp_path: Path, answering: AnsweringServer) -> Place:
    return Place(tmp_path, answering.url)


def names(*numbers: int) -> list[str]:
    return [f"request-{number}" for number in numbers]


def test_every_line_has_its_result_and_bad_lines_are_in_the_errors(place: Place, answering: AnsweringServer) -> None:
    answering.refused, answering.delay_s = {"prompt 3"}, 0.1
    assert place.start([*(request(n) for n in range(20)), "not JSON", request(99, stream=True)])
    assert sorted(place.out) == sorted(names(*(n for n in range(20) if n != 3)))
    errors = place.errors
    assert errors["request-3"]["response"]["status_code"] == 400
    assert errors[None]["error"]["code"] == "invalid_json_line"
    assert errors["request-99"]["error"]["code"] == "invalid_body"
    assert set(errors) == {"request-3", None, "request-99"}
    assert set(answering.seen.values()) == {1}
    assert 1 < answering.most <= 8


def test_a_start_again_computes_only_what_has_no_result(place: Place, answering: AnsweringServer) -> None:
    assert place.start([request(n) for n in range(5)])
    assert place.start([request(n) for n in range(12)])
    assert set(answering.seen.values()) == {1}
    assert sorted(place.out) == sorted(names(*range(12)))


def test_a_stop_ends_in_good_order_and_the_run_continues(place: Place, answering: AnsweringServer) -> None:
    answering.delay_s = 0.2
    lines = [request(n) for n in range(40)]
    assert not place.start(lines, on_tick=lambda runner, _n: setattr(runner, "stopping", True))
    first = len(place.out)
    assert 0 < first < 40
    assert set(answering.seen.values()) == {1}
    answering.delay_s = 0.0
    assert place.start(lines)
    assert sorted(place.out) == sorted(names(*range(40)))
    assert set(answering.seen.values()) == {1}, "what was in flight at the stop was waited for"


def test_errors_of_a_server_that_recovers_are_repeated(place: Place, answering: AnsweringServer) -> None:
    answering.failing = 30
    assert place.start([request(n) for n in range(12)])
    assert sorted(place.out) == sorted(names(*range(12)))
    assert place.errors == {}


def test_a_line_that_kills_its_connection_ends_alone_and_the_others_are_done(
    place: Place, answering: AnsweringServer
) -> None:
    answering.fatal = {"prompt 2", "prompt 7"}
    assert place.start([request(n) for n in range(12)])
    assert sorted(place.out) == sorted(names(*(n for n in range(12) if n not in (2, 7))))
    assert {name: entry["error"]["code"] for name, entry in place.errors.items()} == {
        "request-2": "server_lost", "request-7": "server_lost",
    }  # fmt: skip
    assert "computed this line alone" in place.errors["request-2"]["error"]["message"]


def test_a_line_that_always_fails_has_the_servers_answer(place: Place, answering: AnsweringServer) -> None:
    answering.failing = 1000
    assert place.start([request(1)])
    assert place.errors["request-1"]["response"]["status_code"] == 500
    assert place.errors["request-1"]["response"]["body"] == {"error": {"message": "out of luck"}}


def test_a_server_that_is_gone_ends_the_run_by_name_and_what_is_done_is_safe(
    place: Place, answering: AnsweringServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs: its connections stay open, and nothing comes."""
    monkeypatch.setattr("zpptool.batch.server.METRICS_S", 0.2)
    place.retry_for_s = 0.3
    lines = [request(n) for n in range(200)]
    answering.delay_s = 0.05

    def leave(_runner: Runner, _in_flight: int) -> None:
        if len(answering.seen) > 20:
            answering.close()

    with pytest.raises(ZppError, match=r"has answered no request for 0.3 s") as caught:
        place.start(lines, on_tick=leave)
    assert caught.value.exit_code == ExitCode.STAGE
    assert "continues" in (caught.value.hint or "")
    done = place.out
    assert done
    with answering_server() as other:
        place.url = other.url
        assert place.start(lines)
        assert sorted(place.out) == sorted(names(*range(200)))
        assert len(other.seen) == 200 - len(done)


def test_a_refused_key_ends_the_run(place: Place, tmp_path: Path) -> None:
    from fronts import ToyServer, answering

    server = ToyServer(answering("401 Unauthorized", b'{"error": {"message": "which key?"}}'))
    place.url = server.url
    try:
        with pytest.raises(ZppError, match=r"refuses access: 401 which key\?"):
            place.start([request(1)])
    finally:
        server.close()
    assert (tmp_path / "errors").read_bytes() == b""


@pytest.mark.parametrize("resume", [False, True])
def test_the_order_of_the_input_is_kept(place: Place, answering: AnsweringServer, resume: bool) -> None:
    answering.refused, answering.fatal = {"prompt 5"}, {"prompt 9"}
    lines = [request(n, prompt=f"prompt {n}" if n in (5, 9) else "x" * (n * 37 % 101)) for n in range(30)]
    rules = replace(RULES, ordered=True)
    if resume:
        place.start(lines, rules, lambda runner, _n: setattr(runner, "stopping", True))
    assert place.start(lines, rules)
    assert place.out == names(*(n for n in range(30) if n not in (5, 9)))
    assert list(place.errors) == names(5, 9)


def test_little_is_held_back_for_the_order(
    place: Place, answering: AnsweringServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zpptool.batch.result_order.MAX_HELD", 5)
    answering.fatal = {"prompt 0"}
    assert place.start([request(n) for n in range(40)], replace(RULES, ordered=True))
    assert place.out == names(*range(1, 40))


def test_suspects_are_few(place: Place, answering: AnsweringServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpptool.batch.runner.MAX_SUSPECTS", 3)
    answering.fatal = {f"prompt {n}" for n in range(0, 20, 2)}
    assert place.start([request(n) for n in range(20)])
    assert sorted(place.out) == sorted(names(*range(1, 20, 2)))
    assert len(place.errors) == 10


def test_a_full_disk_ends_the_run_by_name_and_it_continues(place: Place, answering: AnsweringServer) -> None:
    answering.delay_s = 0.05
    lines = [request(n) for n in range(60)]
    for at in (8, 9, 10, 11):  # write and sync of the output, then of the records
        place.files = FaultyFiles(at, errno.ENOSPC)
        with pytest.raises(ZppError, match="No space left on device") as caught:
            place.start(lines)
        assert "Free space" in (caught.value.hint or "")
    place.files = FileOperations()
    assert place.start(lines)
    assert sorted(place.out) == sorted(names(*range(60)))


def test_the_sorted_output_is_the_same_bytes_for_every_order_and_division(tmp_path: Path) -> None:
    outputs = set()
    for number, divided in enumerate((False, True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with answering_server() as server:
            place = Place(folder, server.url)
            lines = [request(n) for n in range(50)]
            if divided:
                place.start(lines, on_tick=lambda runner, _n: setattr(runner, "stopping", True))
            assert place.start(lines)
        outputs.add(b"".join(sorted((folder / "out").read_bytes().splitlines(keepends=True))))
    assert len(outputs) == 1
    assert json.loads(outputs.pop().splitlines()[0])["response"]["body"]["created"] == STARTED


@pytest.mark.parametrize(("room", "fewest", "most"), [(1000, 30, 200), (4, 4, 8)])
def test_as_many_lines_are_in_flight_as_the_engine_admits(
    place: Place, answering: AnsweringServer, monkeypatch: pytest.MonkeyPatch, room: int, fewest: int, most: int
) -> None:
    monkeypatch.setattr("zpptool.batch.runner.LOAD_S", 0.05)
    answering.room, answering.delay_s = room, 0.2
    seen: list[int] = []

    def look(runner: Runner, in_flight: int) -> None:
        seen.append(in_flight)
        runner.stopping = len(answering.seen) > 100

    place.start([request(n) for n in range(200)], replace(RULES, fixed=False, limit=200), look)
    steady = seen[len(seen) // 2 : -2]
    assert max(steady) >= fewest
    assert min(steady) <= most


@pytest.mark.parametrize("has_priorities", [False, True])
def test_lines_have_a_low_priority_where_the_engine_has_priorities(
    here: Callable[..., Ran], answering: AnsweringServer, tmp_path: Path, has_priorities: bool
) -> None:
    answering.has_priorities = has_priorities
    (tmp_path / "in.jsonl").write_text(json.dumps(request(1)) + "\n")
    assert here("run-batch", "--url", answering.url, "-i", "in.jsonl", "-o", "out.jsonl").code == 0
    assert answering.bodies["prompt 1"].get("priority") == (1 if has_priorities else None)
