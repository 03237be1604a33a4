# SPDX-License-Identifier: Apache-2.0
"""Finds this user's heads that run on this machine, and reads the status of one.

Any user can create a directory with the name of a run directory in the temp directory. Sockets of other users are
therefore left out of the search, and refused if one is named.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from zpptool.admin.own_socket import connect_to_own
from zpptool.deadline import Deadline
from zpptool.errors import ExitCode, ZppError, stage_error, usage_error
from zpptool.ownership import distrusted_socket, is_own_peer
from zpptool.process.run_dir import PREFIX
from zpptool.ring.status import SUFFIX, RingStatus
from zpptool.socket_directories import parents

_GLANCE_S = 1.0
"""How long, in seconds, to wait for each of several heads to report its model."""
_MOST_BYTES = 16 << 20
"""The longest status that is read."""


def find_status_paths() -> list[Path]:
    """The status sockets of this user's pipelines whose heads run on this machine, newest first.

    Sockets that another user owns or may change, or that only a symbolic link leads to, are left out.
    """
    found = {path for directory in parents() for path in directory.glob(f"{PREFIX}*/*{SUFFIX}") if _accepts(path)}
    return sorted(found, key=_changed_at, reverse=True)


def _accepts(path: Path) -> bool:
    """Whether a process of this user accepts connections there: a head that was killed leaves its socket behind."""
    try:
        if distrusted_socket(path) is not None:
            return False
    except OSError:  # removed meanwhile, or a directory that this user may not enter
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(str(path))
            return is_own_peer(connection)
        except BlockingIOError:  # other clients are waiting to be accepted
            return True
        except OSError:
            return False


def _changed_at(path: Path) -> float:
    """When the socket was made; 0 if it was removed since it was found."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def the_status_path(run_dir: Path | None) -> Path:
    """The status socket in a directory, or that path itself; without one, the socket of the only running pipeline.

    Raises:
        ZppError: (ADDRESS) there is none; (USAGE) there are several.
    """
    if run_dir is not None:
        found = sorted(run_dir.glob(f"*{SUFFIX}")) if run_dir.is_dir() else [run_dir]
    else:
        found = find_status_paths()
    if not found:
        raise ZppError(
            f"no head reports its status {f'in {run_dir}' if run_dir else 'on this machine'}",
            "Is stage 0 running here, and are you its user?",
            ExitCode.ADDRESS,
        )
    if len(found) > 1:
        raise _several(found)
    return found[0]


def _several(found: Sequence[Path]) -> ZppError:
    """The error that lists heads, each with its model and API; in JSON they are the entry `heads`."""
    heads = [_describe(path) for path in found]
    lines = "; ".join(f"{head['run_dir']} ({head['model']}, {head['api']})" for head in heads)
    error = usage_error(
        f"{len(found)} heads run on this machine: {lines}", "Name one of these directories with --run-dir."
    )
    return error.with_details({"heads": heads})


def _describe(path: Path) -> dict[str, str]:
    """The directory, model and API of one head of several, as text."""
    try:
        ring = read_status(path, _GLANCE_S)
    except ZppError:
        return {"run_dir": str(path.parent), "model": "it does not answer", "api": "API unknown"}
    return {"run_dir": str(path.parent), "model": ring.model or "model unknown", "api": ring.api or "no API"}


def read_status(path: Path, timeout_s: float = 2.0) -> RingStatus:
    """The status that the head at this socket reports.

    Raises:
        ZppError: (ADDRESS) no process accepts connections there; (INVALID) it belongs to another user, or another user
            may change it; (STAGE) no status arrives in time.
    """
    deadline = Deadline(timeout_s)
    answer = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connect_to_own(connection, path)
            while piece := connection.recv(1 << 16):
                answer += piece
                connection.settimeout(max(deadline.remaining_s(), 0.001))
                if len(answer) > _MOST_BYTES:
                    raise stage_error(f"the status at {path} is longer than {_MOST_BYTES} bytes")
        except TimeoutError as late:
            raise stage_error(f"no complete status has arrived from {path} in {timeout_s:g} s") from late
        except OSError as cause:
            raise ZppError(
                f"no head reports its status at {path}: {cause.strerror or cause}",
                "Is stage 0 running on this machine, and are you its user?",
                ExitCode.ADDRESS,
            ) from cause
    try:
        return msgspec.json.decode(bytes(answer), type=RingStatus)
    except msgspec.DecodeError as cause:
        raise stage_error(f"what arrived from {path} is not a status: {cause}") from cause
