# SPDX-License-Identifier: Apache-2.0
"""admin/status_client."""

from __future__ import annotations

import socket
import tempfile
from os import environ
from pathlib import Path

import msgspec

from zpptool.deadline import Deadline
from zpptool.errors import ExitCode, ZppError, usage_error
from zpptool.ring.status import _MOST_BYTES, SUFFIX, RingStatus


def find_status_paths() -> list[Path]:
    """The sockets of this user's pipelines whose heads run on this machine, newest first."""
    places = {Path(tempfile.gettempdir()), *(Path(place) for place in [environ.get("XDG_RUNTIME_DIR", "")] if place)}
    found = {path for place in places for path in place.glob(f"zpp-*/*{SUFFIX}") if _listens(path)}
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _listens(path: Path) -> bool:
    """Whether somebody is behind a unix socket: a head that was killed has left its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(str(path))
        except BlockingIOError:  # a queue of others is before us
            return True
        except OSError:
            return False
    return True


def the_status_path(run_dir: Path | None) -> Path:
    """The status socket in a directory, or that path itself; without one that of the only pipeline there is.

    Raises:
        ZppError: (ADDRESS) none is there; (USAGE) several are.
    """
    if run_dir is not None:
        found = sorted(run_dir.glob(f"*{SUFFIX}")) if run_dir.is_dir() else [run_dir]
    else:
        found = find_status_paths()
    if not found:
        raise ZppError(
            f"no head tells its status {f'in {run_dir}' if run_dir else 'on this machine'}",
            "Is stage 0 running here, and are you its user?",
            ExitCode.ADDRESS,
        )
    if len(found) > 1:
        raise usage_error(
            f"{len(found)} heads run on this machine: {', '.join(str(path.parent) for path in found)}",
            "Name one of these directories with --run-dir.",
        )
    return found[0]


def read_status(path: Path, timeout_s: float = 2.0) -> RingStatus:
    """What the head that listens there tells.

    Raises:
        ZppError: (ADDRESS) nobody answers there; (STAGE) not in time, or not with a status.
    """
    deadline = Deadline(timeout_s)
    told = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(timeout_s)
        try:
            asking.connect(str(path))
            while piece := asking.recv(1 << 16):
                told += piece
                asking.settimeout(max(deadline.remaining_s(), 0.001))
                if len(told) > _MOST_BYTES:
                    raise ZppError(f"{path} tells more than {_MOST_BYTES} bytes", exit_code=ExitCode.STAGE)
        except TimeoutError as late:
            raise ZppError(f"{path} has told nothing whole in {timeout_s:g} s", exit_code=ExitCode.STAGE) from late
        except OSError as cause:
            raise ZppError(
                f"no head tells its status at {path}: {cause.strerror or cause}",
                "Is stage 0 running on this machine, and are you its user?",
                ExitCode.ADDRESS,
            ) from cause
    try:
        return msgspec.json.decode(bytes(told), type=RingStatus)
    except msgspec.DecodeError as cause:
        raise ZppError(f"what {path} tells is no status: {cause}", exit_code=ExitCode.STAGE) from cause
