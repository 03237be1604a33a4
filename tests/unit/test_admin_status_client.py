# SPDX-License-Identifier: Apache-2.0
"""The status of a ring over a unix socket, and which sockets are found."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.rings import ring, stage
from zpptool.admin.attach import named_status
from zpptool.admin.status_client import read_status, the_status_path
from zpptool.admin.status_server import StatusServer
from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ExitCode, ZppError
from zpptool.ring.status import status_path


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "head.status"
    server = StatusServer(path, lambda: ring(stage(0), stage(1)))
    yield path
    server.close()


def test_a_status_is_read_as_it_was_served(socket_path: Path) -> None:
    assert read_status(socket_path) == ring(stage(0), stage(1))
    assert the_status_path(socket_path.parent) == the_status_path(socket_path) == socket_path


def test_only_the_owner_can_connect(socket_path: Path) -> None:
    assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600


def test_a_client_that_does_not_read_delays_the_next_for_a_second_at_most(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(socket_path))
        assert read_status(socket_path, 5.0).run_id == "run"


def test_the_socket_of_a_killed_head_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "head.status"))
    server = StatusServer(tmp_path / "head.status", lambda: ring())
    assert read_status(tmp_path / "head.status").stages == ()
    server.close()
    with pytest.raises(ZppError, match="no head reports its status") as fault:
        read_status(tmp_path / "head.status")
    assert fault.value.exit_code is ExitCode.ADDRESS


def test_silence_and_noise_are_errors_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        with pytest.raises(ZppError, match=r"no complete status has arrived from .* in 0\.2 s") as fault:
            read_status(tmp_path / "s", 0.2)
        assert fault.value.exit_code is ExitCode.STAGE

        def send_noise() -> None:
            listening.accept()[0].close()  # the client that has given up
            with listening.accept()[0] as client:
                client.sendall(b"{}")

        thread = threading.Thread(target=send_noise)
        thread.start()
        with pytest.raises(ZppError, match="is not a status"):
            read_status(tmp_path / "s", 5.0)
        thread.join()


def test_several_heads_are_listed_with_model_and_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other pipelines may run on this machine
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(ZppError) as none:
        the_status_path(tmp_path)
    assert none.value.exit_code is ExitCode.ADDRESS
    opened = []
    for name in ("zpp-a", "zpp-b"):
        (tmp_path / name).mkdir()
        spec = StageSpec(Engine.VLLM, f"/models/{name}", ((0, 2),), 0, "", "", api_port=len(opened) + 8000)
        status = partial(named_status, ring, spec)
        opened.append(StatusServer(status_path(f"ipc://{tmp_path}/{name}/head"), status))
    with pytest.raises(ZppError) as several:
        the_status_path(None)
    assert several.value.exit_code is ExitCode.USAGE
    assert f"{tmp_path}/zpp-a (/models/zpp-a, http://127.0.0.1:8000)" in several.value.message
    assert f"{tmp_path}/zpp-b (/models/zpp-b, http://127.0.0.1:8001)" in several.value.message
    assert {head["model"] for head in several.value.beside["heads"]} == {"/models/zpp-a", "/models/zpp-b"}
    for server in opened:
        server.close()


def test_the_socket_of_a_killed_head_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other pipelines may run on this machine
    for name in ("zpp-killed", "zpp-runs"):
        (tmp_path / name).mkdir()
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(status_path(f"ipc://{tmp_path}/zpp-killed/head")))
    server = StatusServer(status_path(f"ipc://{tmp_path}/zpp-runs/head"), lambda: ring())
    try:
        assert the_status_path(None).parent.name == "zpp-runs"
        assert read_status(the_status_path(None)) == ring()
    finally:
        server.close()
