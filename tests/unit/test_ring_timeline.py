# SPDX-License-Identifier: Apache-2.0
"""The timeline: complete JSON at every moment, one file for several processes, and what a ring writes into it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toys import changed, ring_specs, threads

from zpptool.errors import ExitCode, ZppError
from zpptool.ring.timeline import FLUSH_EVENTS, Timeline, check_trace_file
from zpptool.wire.link import LinkSender

pytestmark = pytest.mark.timeout(60)


def spans(file: Path) -> list[dict]:
    return [event for event in json.loads(file.read_text()) if event["ph"] == "X"]


def test_several_processes_add_to_one_file_and_no_event_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    count = 2 * FLUSH_EVENTS + 7

    def write(place: int) -> None:
        timeline = Timeline(file, place, f"stage {place}")
        for number in range(count):
            timeline.span("step", number * 1000, number * 1000 + 500, step=number)
        timeline.flush()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    seen = [(event["pid"], event["args"]["step"]) for event in spans(file)]
    assert sorted(seen) == [(place + 1, number) for place in range(3) for number in range(count)]


def test_times_are_microseconds(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "trace.json", 0, "stage 0")
    timeline.span("step", 2_000_500, 2_001_000)
    timeline.flush()
    (event,) = spans(tmp_path / "trace.json")
    assert (event["ts"], event["dur"]) == (2000.5, 0.5)


def test_another_kind_of_file_is_refused_and_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("precious")
    with pytest.raises(ZppError) as caught:
        check_trace_file(file)
    assert caught.value.exit_code == ExitCode.USAGE
    assert file.read_text() == "precious"
    with pytest.raises(ZppError):
        check_trace_file(tmp_path / "nowhere" / "trace.json")


def test_a_ring_shows_each_step_at_each_place_in_the_order_of_the_ring(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    specs = [changed(spec, trace=str(file)) for spec in ring_specs(3, tmp_path)]
    with threads(specs) as ring:
        ring.head.set_up("learn", b"this", timeout_s=10).result(10)
        for _step in range(5):
            ring.ask("step")
    by_step: dict[int, list[dict]] = {}
    for event in spans(file):
        by_step.setdefault(event["args"]["step"], []).append(event)
    assert sorted(by_step) == list(range(6))
    assert {event["pid"] for event in by_step.pop(0) if event["name"] == "learn"} == {0, 1, 2, 3}
    for events in by_step.values():
        at = {(event["pid"], event["name"]): event for event in events}
        assert {pid for pid, name in at if name == "step"} == {0, 1, 2, 3}
        assert {pid for pid, name in at if name == "waiting for tensors"} == {2, 3}
        assert {pid for pid, name in at if name == "sending tensors"} == {1, 2}
        assert {pid for pid, name in at if name == "waiting for a call"} == {1, 2, 3}
        head, last = at[0, "step"], at[3, "step"]
        assert head["ts"] <= at[1, "step"]["ts"]
        assert (
            at[1, "sending tensors"]["ts"] <= at[2, "waiting for tensors"]["ts"] + at[2, "waiting for tensors"]["dur"]
        )
        assert last["ts"] < head["ts"] + head["dur"]


def test_what_was_done_is_written_before_the_links_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that takes long to close its links may be killed meanwhile."""
    file = tmp_path / "trace.json"
    written: dict[int, set[int]] = {}
    close = LinkSender.close

    def record_and_close(link: LinkSender, *linger_s: float) -> None:
        written[link.stage] = {event["pid"] for event in spans(file)}
        close(link, *linger_s)

    monkeypatch.setattr(LinkSender, "close", record_and_close)
    with threads([changed(spec, trace=str(file)) for spec in ring_specs(2, tmp_path)]) as ring:
        ring.ask("step")
    assert sorted(written) == [-1, 0, 1]
    assert all(place + 1 in written[place] for place in written)


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    with threads(ring_specs(2, tmp_path)) as ring:
        ring.ask("step")
    assert list(tmp_path.glob("*.json")) == []
