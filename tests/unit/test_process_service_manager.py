# SPDX-License-Identifier: Apache-2.0
"""Notifications of the service manager, received on real datagram sockets: in the file system and abstract."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zpptool.process.group import HEAD_NAME
from zpptool.process.progress import LOADED, report_phase, show_life, still_for_s
from zpptool.process.service_manager import LOOK_S, ServiceManager, service_manager
from zpptool.supervisor.restarter import Restarter


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        made.setblocking(False)
        yield made


def received(listener: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listener.recv(4096).decode())
        except BlockingIOError:
            return found


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_ready_is_said_once_and_alive_at_half_the_interval(kind: str, tmp_path: Path) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@zpptool-test-{os.getpid()}"
    clock, state = Clock(), SimpleNamespace(ready=False, moves=True)
    with listening(address) as listener:
        manager = ServiceManager(address, 20.0, clock)

        def after(seconds: float) -> list[str]:
            """What is received in so much time, in which the manager is called ten times a second."""
            for _ in range(round(seconds * 10)):
                manager.tick(lambda: state.ready, lambda: state.moves)
                clock.now += 0.1
            return received(listener)

        assert after(1) == ["WATCHDOG=1"]
        state.ready = True
        assert after(1) == ["READY=1"]
        assert after(30) == ["WATCHDOG=1"] * 3
        state.moves = False
        assert after(30) == []
        state.moves = True
        assert after(1) == ["WATCHDOG=1"]
        manager.stopping()
        assert received(listener) == ["STOPPING=1"]


def test_nothing_is_looked_at_without_a_service_manager_or_too_often() -> None:
    looked: list[float] = []
    clock = Clock()
    absent = ServiceManager("", 0.0, clock)
    absent.tick(lambda: bool(looked.append(0)), lambda: True)
    absent.stopping()
    assert looked == []
    present = ServiceManager("/nowhere/notify", 0.0, clock)
    for _ in range(100):
        present.tick(lambda: bool(looked.append(clock.now)), lambda: True)
        clock.now += LOOK_S / 10
    assert len(looked) == 10


def test_a_service_manager_that_does_not_listen_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager("/nowhere/notify", 0.0)
    manager.tick(lambda: True, lambda: True)
    assert "cannot be notified of READY=1" in caplog.text
    ServiceManager("/" + "x" * 300, 0.0).stopping()


@pytest.mark.parametrize(
    ("variables", "period"),
    [
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "ME"}, 15.0),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000"}, 15.0),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_variables_are_read_and_not_passed_on(variables: dict[str, str], period: float) -> None:
    env = {name: str(os.getpid()) if value == "ME" else value for name, value in variables.items()}
    manager: Any = service_manager(passed := dict(env))
    assert manager._every_s == period
    assert passed == {}


def test_progress_is_what_a_loaded_stage_reports_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = SimpleNamespace(name="stage 1", ended=False)
    head = SimpleNamespace(name=HEAD_NAME, ended=False)
    restarter = Restarter(SimpleNamespace(children=[child, head]), tmp_path)  # type: ignore[arg-type]
    monkeypatch.setenv("ZPP_PHASE_FILE", str(tmp_path / "stage-1"))
    report_phase("loading 4%")
    os.utime(tmp_path / "stage-1", (0, 0))
    assert restarter.makes_progress(60)  # --start-timeout is for this
    report_phase(LOADED)
    assert restarter.makes_progress(60)
    show_life(100.0)
    assert 99 < still_for_s(tmp_path / "stage-1") < 110
    assert not restarter.makes_progress(60)
    show_life(0.0)
    assert restarter.makes_progress(60)
    show_life(100.0)
    child.ended = True  # it is started again
    assert restarter.makes_progress(60)
