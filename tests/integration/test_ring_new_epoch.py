# SPDX-License-Identifier: Apache-2.0
"""A new epoch passes through the whole ring and drops what was under way; messages of the old one have no effect."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_ring import trace, where
from toys import ring_specs, threads

from zpptool.ring.status import WAITING
from zpptool.wire.link import StaleEpoch

pytestmark = pytest.mark.timeout(30)


def until(condition: Callable[[], object], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.02)


def test_open_calls_are_dropped_and_the_next_ones_answered(tmp_path: Path) -> None:
    with threads(ring_specs(3, tmp_path, recovery_s=10)) as ring:
        for epoch in range(2, 7):
            old = [ring.head.call("step", str(number).encode() * 1000, from_all=False) for number in range(40)]
            ring.head.begin_epoch("a test wants it")
            assert ring.head.wait_until_whole() == epoch
            new = [ring.head.call("step", str(number).encode(), from_all=False) for number in range(40)]
            for number, call in enumerate(new):
                assert call.result(10) == trace(number, 3)
            for call in old:
                fault = call.exception(1)
                assert fault is None or isinstance(fault, StaleEpoch)
            assert "was dropped with epoch" in str(old[-1].exception())
        assert ring.ask("where", from_all=True) == where(3)
        assert ring.head.fault is None
        until(lambda: {stage.link.epoch if stage.link else None for stage in ring.head.status().stages} == {6})
        assert {stage.epoch for stage in ring.head.status().stages} == {6}


def test_a_stage_that_waits_for_tensors_of_an_old_epoch_stops_waiting(tmp_path: Path) -> None:
    with threads(ring_specs(3, tmp_path, recovery_s=10)) as ring:
        waiting = ring.head.call("await tensors", b"1", from_all=True)
        time.sleep(0.2)
        assert not waiting.done()
        ring.head.begin_epoch("they are not sent")
        assert isinstance(waiting.exception(1), StaleEpoch)
        ring.head.wait_until_whole()
        assert ring.ask("step", b"7", within_s=5) == trace(7, 3)


def test_epochs_that_begin_under_load_leave_no_call_without_an_answer_or_an_error(tmp_path: Path) -> None:
    with threads(ring_specs(2, tmp_path, recovery_s=10)) as ring, ThreadPoolExecutor(4) as pool:
        assert ring.head.status().phase != WAITING

        def ask(number: int) -> bool:
            ring.head.wait_until_whole()
            call = ring.head.call("step", str(number).encode(), from_all=False)
            fault = call.exception(10)
            assert isinstance(fault, StaleEpoch) or call.result() == trace(number, 2)
            return fault is None

        asked = [pool.submit(ask, number) for number in range(400)]
        for _ in range(10):
            time.sleep(0.05)
            ring.head.begin_epoch("a test wants it")
        assert any(call.result(20) for call in asked)
        assert ring.head.fault is None
