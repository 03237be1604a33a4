# SPDX-License-Identifier: Apache-2.0
"""Another user of this machine: a process of theirs, and a false head that it serves."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from tests.rings import ring, stage
from zpptool.admin.change_types import Outcome, encode_line
from zpptool.ring.status import CHANGE_SUFFIX, SUFFIX

OTHER_USER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@contextmanager
def shared_directory() -> Iterator[Path]:
    """A directory that every user may write to, like /tmp."""
    path = Path(tempfile.mkdtemp(prefix="shared-"))
    try:
        path.chmod(0o1777)
        yield path
    finally:
        shutil.rmtree(path)


def as_another_user(act: Callable[[], int]) -> int:
    """Fork a process of another user that calls `act`; the exit code is what it returns, or 99 if it raises."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            _become_another_user()
            code = act()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def false_head(directory: Path) -> Iterator[Path]:
    """A process of another user that claims to be a head: it reports a status, and every change succeeds at once.

    Args:
        directory: created by that process; its parent is one that every user may write to.

    Yields:
        the status socket, once it accepts connections.
    """
    ready, report = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _become_another_user()
            _serve(directory, report)
        finally:
            os._exit(1)
    os.close(report)
    try:
        assert os.read(ready, 1) == b"x", "the false head has not started"
        yield directory / f"head{SUFFIX}"
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _become_another_user() -> None:
    os.setgroups([])
    os.setgid(OTHER_USER)
    os.setuid(OTHER_USER)


def _serve(directory: Path, report: int) -> None:
    directory.mkdir()
    directory.chmod(0o755)
    answers = {
        f"head{SUFFIX}": msgspec.json.encode(ring(stage(0), stage(1))),
        f"head{CHANGE_SUFFIX}": encode_line(Outcome("every stage has restarted")),
    }
    children = []
    for name, answer in answers.items():
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / name))
        os.chmod(directory / name, 0o777)
        listener.listen(64)
        children.append((listener, answer))
    if os.fork() == 0:
        children.pop(0)
        signal.alarm(60)
    else:
        children.pop()
        os.write(report, b"x")
    [(listener, answer)] = children
    while True:
        client, _ = listener.accept()
        with client, suppress(OSError):
            client.sendall(answer)
