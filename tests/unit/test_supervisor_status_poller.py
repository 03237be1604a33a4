# SPDX-License-Identifier: Apache-2.0
"""What is known of a ring whose head comes, is too busy, breaks, and goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.rings import ring, stage
from zpptool.admin.status_client import read_status
from zpptool.admin.status_server import StatusServer
from zpptool.ring.status import RingStatus
from zpptool.supervisor import status_poller as ringwatch
from zpptool.supervisor.status_poller import StatusPoller

pytestmark = pytest.mark.timeout(60)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def test_what_the_head_said_last_is_known_as_long_as_there_is_a_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ringwatch, "read_status", lambda path: read_status(path, 0.2))
    well, busy, asked = ring(stage(0)), False, 0

    def status() -> RingStatus:
        nonlocal asked
        asked += 1
        if busy:
            time.sleep(0.5)
        return well

    watch = StatusPoller(tmp_path / "head.status")
    assert watch.told is None
    socket = StatusServer(tmp_path / "head.status", status)
    try:
        until(lambda: watch.told == well)
        busy, before = True, asked
        until(lambda: asked >= before + 2)
        assert watch.told is not None
        busy, well = False, msgspec.structs.replace(well, phase="broken", fault="stage 0 hangs")
        until(lambda: watch.fault == "stage 0 hangs")
    finally:
        socket.close()
    until(lambda: watch.told is None)
    assert watch.fault == "stage 0 hangs"
    watch.stop()
