# SPDX-License-Identifier: Apache-2.0
"""A stage started as systemd starts it: ready when requests are answered, alive until its worker stands still."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stages import free_base_port, started, wait_until_ready

pytestmark = [pytest.mark.torch, pytest.mark.long, pytest.mark.timeout(300)]

WATCHDOG_S = 4.0
BEAT_TIMEOUT_S = 3


def test_readiness_and_watchdog_of_a_real_stage(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = free_base_port(3)
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    command = (
        *(tiny_model("llama", layers=2), "--stage-idx", 0, "--total-stages", 1, "--engine", "transformers"),
        *("--device", "cpu", "--base-port", base, "--port", base + 2, "--beat-timeout", BEAT_TIMEOUT_S),
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(120)

        def received_within(seconds: float) -> list[str]:
            found, end = [], time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                manager.settimeout(left)
                try:
                    found.append(manager.recv(4096).decode())
                except TimeoutError:
                    break
            return found

        with started(tmp_path, [command]) as stages:
            before: list[str] = []
            deadline = time.monotonic() + 180
            while "READY=1" not in before:
                assert time.monotonic() < deadline, stages[0].text()
                assert stages[0].process.poll() is None, stages[0].text()
                before += received_within(1)
            assert set(before) == {"WATCHDOG=1", "READY=1"}
            wait_until_ready(f"http://127.0.0.1:{base + 2}", stages, 60)
            assert 2 <= received_within(3 * WATCHDOG_S).count("WATCHDOG=1") <= 7
            worker = stages[0].worker()
            worker.send_signal(signal.SIGSTOP)
            try:
                received_within(BEAT_TIMEOUT_S + WATCHDOG_S)
                assert received_within(2 * WATCHDOG_S) == []
            finally:
                worker.send_signal(signal.SIGCONT)
            assert "WATCHDOG=1" in received_within(2 * WATCHDOG_S)
            stages[0].process.terminate()
            assert "STOPPING=1" in received_within(5)
