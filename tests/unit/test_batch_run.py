# SPDX-License-Identifier: Apache-2.0
"""How a run is begun and continued: its input, its identity, and a clock that jumps."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batches import Crash, FaultyFiles, request, write_input
from fronts import ReceivedRequest, ToyServer

from zpptool.batch.file_operations import FileOperations
from zpptool.batch.run import Prepared, RunSettings, outcome_so_far, parse_defaults, prepare
from zpptool.batch.workplace import Workplace, workplace_of
from zpptool.errors import ZppError


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    made = workplace_of(tmp_path / "out.jsonl", None)
    made.journal.mkdir()
    return made


@pytest.fixture
def web() -> Iterator[ToyServer]:
    """A server whose every path is an input of one line, which names the path."""

    async def give(received: ReceivedRequest, writer: Any) -> None:
        entries = [request(1, prompt=received.path)] * (2 if "twice" in received.path else 1)
        content = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)

    server = ToyServer(give)
    yield server
    server.close()


def begin(place: Workplace, text: str, files: FileOperations | None = None, **more: Any) -> Prepared:
    settings = RunSettings(input=text, identity={"model": "toy"})
    return prepare(settings, place, files or FileOperations(), **more)


def prompts(prepared: Prepared) -> list[str]:
    return [json.loads(line.content or b"")["body"]["prompt"] for line in prepared.lines]


def test_a_run_keeps_the_time_of_its_first_start_whatever_the_clock_does(place: Workplace, tmp_path: Path) -> None:
    write_input(tmp_path / "in", 3)
    headers = [begin(place, str(tmp_path / "in"), now=lambda now=now: now).header for now in (1e9, 5.0, 4e9)]
    assert {header.started for header in headers} == {10**9}
    assert not outcome_so_far(begin(place, str(tmp_path / "in")), place, FileOperations()).complete


def test_an_input_that_was_refused_may_be_replaced(place: Workplace, web: ToyServer) -> None:
    with pytest.raises(ZppError, match="have the same custom_id"):
        begin(place, f"{web.url}/twice")
    assert prompts(begin(place, f"{web.url}/once")) == ["/once"]
    with pytest.raises(ZppError, match="another input source"):
        begin(place, f"{web.url}/other")
    assert prompts(begin(place, f"{web.url}/once")) == ["/once"]


def test_standard_input_of_a_run_that_never_began_may_be_replaced(place: Workplace) -> None:
    line = json.dumps(request(1)).encode() + b"\n"
    with pytest.raises(ZppError, match="same custom_id"):
        begin(place, "-", stdin=io.BytesIO(line * 2))
    assert prompts(begin(place, "-", stdin=io.BytesIO(line))) == ["prompt 1"]


def test_every_failpoint_of_a_beginning_leaves_a_run_that_can_be_begun(tmp_path: Path) -> None:
    line = json.dumps(request(1)).encode() + b"\n"
    at = 0
    while True:
        place = workplace_of(tmp_path / f"out{at}.jsonl", None)
        place.journal.mkdir()
        try:
            begin(place, "-", FaultyFiles(at), stdin=io.BytesIO(line))
        except Crash:
            assert prompts(begin(place, "-", stdin=io.BytesIO(line))) == ["prompt 1"]
            at += 1
            continue
        assert at > 8
        return


def test_an_input_that_changes_is_refused(place: Workplace, tmp_path: Path) -> None:
    begin(place, str(write_input(tmp_path / "in", 3)))
    write_input(tmp_path / "in", 3, temperature=0)
    with pytest.raises(ZppError, match="another input "):
        begin(place, str(tmp_path / "in"))


def test_defaults_are_json_or_text() -> None:
    given = ["max_tokens=5", "stop=END", 'metadata={"a": 1}', "seed=null"]
    assert parse_defaults(given) == {"max_tokens": 5, "stop": "END", "metadata": {"a": 1}, "seed": None}
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(ZppError, match="NAME=VALUE"):
            parse_defaults(wrong)
