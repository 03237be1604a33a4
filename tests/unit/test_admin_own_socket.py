# SPDX-License-Identifier: Apache-2.0
"""A head of another user is neither found nor believed, and another user gets nothing from this user's head."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Ran

from tests.rings import ring
from tests.strangers import OTHER_USER, as_another_user, false_head, needs_root, shared_directory
from zpptool.admin.change_types import Rollout, ask
from zpptool.admin.status_client import find_status_paths, read_status, the_status_path
from zpptool.admin.status_server import StatusServer
from zpptool.errors import ExitCode, ZppError
from zpptool.process.run_dir import private_directory
from zpptool.ring.status import CHANGE_SUFFIX, SUFFIX

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temp directory of this test, which every user may write to."""
    with shared_directory() as path:
        monkeypatch.setattr(tempfile, "tempdir", str(path))
        monkeypatch.setenv("TMPDIR", str(path))
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        yield path


def refused(path: Path, why: str) -> None:
    """Both clients refuse a status socket and the change socket beside it, for the same reason."""
    for action in (lambda: read_status(path), lambda: list(ask(path.with_suffix(CHANGE_SUFFIX), Rollout("test")))):
        with pytest.raises(ZppError, match=why) as fault:
            action()
        assert fault.value.exit_code is ExitCode.INVALID
        assert fault.value.hint is not None
        assert "the user who started the pipeline" in fault.value.hint


@needs_root
class TestAFalseHead:
    def test_it_is_not_found_and_refused_where_it_is_named(self, shared: Path) -> None:
        with false_head(shared / "zpp-false") as path:
            assert find_status_paths() == []
            with pytest.raises(ZppError, match="no head reports its status") as none:
                the_status_path(None)
            assert none.value.exit_code is ExitCode.ADDRESS
            refused(path, rf"zpp-false belongs to another user \(uid {OTHER_USER}\)")

    def test_a_head_of_this_user_is_found_beside_it(self, shared: Path) -> None:
        with false_head(shared / "zpp-false"), private_directory() as own:
            server = StatusServer(own / f"head{SUFFIX}", lambda: ring())
            try:
                assert find_status_paths() == [own / f"head{SUFFIX}"]
                assert read_status(the_status_path(None)) == ring()
            finally:
                server.close()

    def test_a_link_to_its_directory_or_socket_is_not_followed(self, shared: Path) -> None:
        with false_head(shared / "false") as path:
            (shared / "zpp-link").symlink_to(path.parent)
            (shared / "zpp-own").mkdir(mode=0o700)
            for suffix in (SUFFIX, CHANGE_SUFFIX):
                (shared / f"zpp-own/head{suffix}").symlink_to(path.with_suffix(suffix))
            assert find_status_paths() == []
            refused(shared / f"zpp-link/head{SUFFIX}", "zpp-link is a symbolic link")
            refused(shared / f"zpp-own/head{SUFFIX}", r"head\.\w+ is a symbolic link")

    def test_the_owner_of_the_process_counts_where_the_files_are_this_user_s(self, shared: Path) -> None:
        with false_head(shared / "zpp-false") as path:
            for each in (path.parent, path, path.with_suffix(CHANGE_SUFFIX)):
                os.chown(each, 0, 0)
                each.chmod(0o700)
            assert find_status_paths() == []
            refused(path, rf"the process behind .* belongs to another user \(uid {OTHER_USER}\)")

    def test_the_commands_refuse_it(self, shared: Path, zpptool: Callable[..., Ran]) -> None:
        with false_head(shared / "zpp-false"):
            for command in ("status", "rollout"):
                named = zpptool(command, "--run-dir", shared / "zpp-false")
                assert named.code == ExitCode.INVALID, named.err
                assert "belongs to another user" in named.err
                assert named.out == ""


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o720, 0o702])
def test_a_directory_that_others_may_write_to_is_not_trusted(shared: Path, mode: int) -> None:
    directory = shared / "zpp-open"
    directory.mkdir()
    servers = [StatusServer(directory / f"head{suffix}", lambda: ring()) for suffix in (SUFFIX, CHANGE_SUFFIX)]
    try:
        assert find_status_paths() == [directory / f"head{SUFFIX}"]
        directory.chmod(mode)
        assert find_status_paths() == []
        refused(directory / f"head{SUFFIX}", rf"other users can write to .*zpp-open \(mode {mode:04o}\)")
    finally:
        for server in servers:
            server.close()


def test_what_is_no_socket_is_refused(tmp_path: Path) -> None:
    for suffix in (SUFFIX, CHANGE_SUFFIX):
        (tmp_path / f"head{suffix}").write_text("{}")
    refused(tmp_path / f"head{SUFFIX}", "is not a socket")


@needs_root
def test_another_user_gets_no_answer_from_this_users_head(shared: Path) -> None:
    path = shared / f"head{SUFFIX}"
    server = StatusServer(path, lambda: ring())
    path.chmod(0o777)  # as if the file and its directory did not protect it

    def connect() -> int:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            return len(connection.recv(100))

    try:
        assert as_another_user(connect) == 0
    finally:
        server.close()


@needs_root
def test_a_run_does_not_use_the_runtime_directory_of_another_user(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = shared / "runtime"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, OTHER_USER, OTHER_USER)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(theirs))  # as `sudo -E` leaves it
    with private_directory() as directory:
        assert directory.parent == shared


@needs_root
def test_the_directory_of_another_users_killed_run_is_left_alone(shared: Path) -> None:
    (shared / "victim").mkdir()
    (shared / "victim/run.lock").touch()

    def plant() -> int:
        (shared / "zpp-theirs").mkdir()
        (shared / "zpp-theirs/run.lock").touch()
        (shared / "zpp-link").symlink_to(shared / "victim")
        return 0

    assert as_another_user(plant) == 0
    with private_directory():
        assert (shared / "zpp-theirs/run.lock").exists()
        assert (shared / "victim/run.lock").exists()
