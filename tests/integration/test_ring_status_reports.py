# SPDX-License-Identifier: Apache-2.0
"""A running ring reports its status; a stage whose main loop hangs, or that is silent, is named in time."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import changed, processes, ring_specs, threads

from zpptool.admin.prometheus import metrics_text
from zpptool.admin.status_client import read_status
from zpptool.errors import ExitCode
from zpptool.ring.head.epochs import FIRST_EPOCH
from zpptool.ring.status import COMPUTING, READY, RingStatus, status_path

pytestmark = pytest.mark.timeout(30)


def until(path: Path, condition: Callable[[RingStatus], object], within_s: float = 10.0) -> RingStatus:
    """The first status that meets the condition."""
    end = time.monotonic() + within_s
    while not condition(status := read_status(path, 5.0)):
        assert time.monotonic() < end, status
        time.sleep(0.05)
    return status


def test_a_ring_reports_every_stage_and_link(tmp_path: Path, zpptool) -> None:
    specs = ring_specs(3, tmp_path)
    path = status_path(specs[0].local)
    with threads(specs) as ring:
        for number in range(40):
            ring.ask("step", str(number).encode())
        status = until(
            path,
            lambda now: all(s.link and s.rtt_ms and s.steps >= 40 and not s.link.queue for s in now.stages),
        )
        shown = zpptool("status", "--run-dir", tmp_path)
        printed = json.loads(zpptool("status", "--run-dir", tmp_path, "--json").out)
    assert (status.phase, status.epoch, status.fault) == (READY, FIRST_EPOCH, "")
    assert [place.stage for place in status.stages] == [0, 1, 2]
    for place, after in zip((status.head, *status.stages), ("stage 0", "stage 1", "stage 2", "the head"), strict=True):
        link = place.link
        assert link is not None
        assert (link.peer, link.state, link.sessions, link.refused, link.last_error) == (after, "connected", 1, 0, "")
        assert link.messages_sent >= 40
        assert link.bytes_sent > 0
        assert sum(link.rtt_counts) >= 1
    assert [place.layers for place in status.stages] == [(0, 2), (2, 4), (4, 6)]
    assert 'zpp:link_sent_messages_total{peer="stage 2",replica="one",stage="1"}' in metrics_text({"one": status})
    assert shown.code == ExitCode.OK
    assert f"run {status.run_id}, epoch {FIRST_EPOCH}: ready" in shown.out
    assert "stage 2 -> the head" in shown.out
    assert printed["schema_version"] == 1
    assert [place["link"]["peer"] for place in printed["stages"]] == ["stage 1", "stage 2", "the head"]
    after = zpptool("status", "--run-dir", tmp_path)
    assert after.code == ExitCode.ADDRESS


def test_a_stage_that_hangs_at_a_step_is_named(tmp_path: Path) -> None:
    specs = ring_specs(3, tmp_path, step_s=20.0)
    with processes([changed(spec, beat_timeout_s=1.5) for spec in specs], tmp_path) as ring:
        path = status_path(specs[0].local)
        waiting = ring.head.call("sleep", b"1", from_all=True)
        hanging = until(path, lambda status: status.stages[1].beat_age_s > 0.5)
        assert [place.phase for place in hanging.stages] == [READY, COMPUTING, READY]
        assert ring.broken.wait(15)
        fault = ring.faults[0]
        assert waiting.exception(5) is fault
        assert fault.exit_code is ExitCode.STAGE
        assert f"stage 1 hangs ({hanging.stages[1].host}, pid {ring.children[1].pid})" in fault.message
        assert "its main loop has not moved for" in fault.message
        assert "while sleep waits for it" in fault.message
        assert until(path, lambda status: status.phase == "broken").fault == fault.message


def test_a_stage_that_may_take_long_is_not_taken_to_hang(tmp_path: Path) -> None:
    specs = [changed(spec, beat_timeout_s=0.3) for spec in ring_specs(2, tmp_path)]
    with threads(specs) as ring:
        long = ring.head.call("await tensors", b"1", from_all=True, timeout_s=3.0)
        time.sleep(1.5)
        assert ring.head.fault is None
        assert "was not answered in 3 s" in str(long.exception(10))


def test_a_stopped_process_is_named_as_silent(tmp_path: Path) -> None:
    specs = ring_specs(3, tmp_path, step_s=20.0)
    with processes([changed(spec, beat_timeout_s=1.5) for spec in specs], tmp_path) as ring:
        until(status_path(specs[0].local), lambda status: all(place.pid for place in status.stages))
        ring.children[1].send_signal(signal.SIGSTOP)
        try:
            waiting = ring.head.call("where", b"", from_all=True)
            assert ring.broken.wait(15)
        finally:
            ring.children[1].send_signal(signal.SIGCONT)
        assert "stage 1 hangs" in ring.faults[0].message
        assert "its main loop is silent" in ring.faults[0].message
        assert waiting.exception(5) is ring.faults[0]
