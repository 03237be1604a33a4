# SPDX-License-Identifier: Apache-2.0
"""The status of a ring whose head starts, is too busy, breaks, and ends."""

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
from zpptool.supervisor import status_poller
from zpptool.supervisor.status_poller import StatusPoller

pytestmark = pytest.mark.timeout(60)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


def test_the_last_status_is_kept_as_long_as_there_is_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_poller, "read_status", lambda path: read_status(path, 0.2))
    healthy, busy, reads = ring(stage(0)), False, 0

    def status() -> RingStatus:
        nonlocal reads
        reads += 1
        if busy:
            time.sleep(0.5)
        return healthy

    poller = StatusPoller(tmp_path / "head.status")
    assert poller.status is None
    socket = StatusServer(tmp_path / "head.status", status)
    try:
        until(lambda: poller.status == healthy)
        busy, before = True, reads
        until(lambda: reads >= before + 2)
        assert poller.status is not None
        busy, healthy = False, msgspec.structs.replace(healthy, phase="broken", fault="stage 0 hangs")
        until(lambda: poller.fault == "stage 0 hangs")
    finally:
        socket.close()
    until(lambda: poller.status is None)
    assert poller.fault == "stage 0 hangs"
    poller.stop()
