# SPDX-License-Identifier: Apache-2.0
"""Attaches the operator's two sockets, for status and for planned changes, to the head of a running ring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from zpptool.admin.change_server import ChangeServer
from zpptool.admin.status_server import StatusServer
from zpptool.config.stage_spec import StageSpec
from zpptool.log import place_logger
from zpptool.net.addresses import url_host
from zpptool.places import HEAD
from zpptool.ring.head.node import HeadNode
from zpptool.ring.status import RingStatus, change_path, status_path

_log = place_logger(__name__, HEAD)


class _Server(Protocol):
    def close(self) -> None: ...


def named_status(status: Callable[[], RingStatus], spec: StageSpec) -> RingStatus:
    """The ring's status with what tells its head from others on the machine: the model, and the URL of the API."""
    api = "" if spec.headless else f"http://{url_host(spec.api_host)}:{spec.api_port}"
    return msgspec.structs.replace(status(), model=spec.served_name or spec.model, api=api)


@contextmanager
def admin_servers(node: HeadNode, spec: StageSpec) -> Iterator[None]:
    """Serve status and planned changes of `node` for as long as the context lasts.

    Planned changes are accepted only where the head's local endpoint is an ipc socket, which lies in a private
    directory. A socket that cannot be bound is logged and left out: the pipeline runs without it.

    Args:
        node: the head's node, open.
        spec: the head's spec; the sockets' files lie beside its local endpoint.
    """
    with ExitStack() as open_servers:
        status = partial(named_status, node.status, spec)
        _open(open_servers, status_path(spec.local), partial(StatusServer, status=status), "status")
        if spec.local.startswith("ipc://"):
            _open(open_servers, change_path(spec.local), partial(ChangeServer, ring=node), "planned changes")
        yield


def _open(stack: ExitStack, path: Path, server: Callable[[Path], _Server], what: str) -> None:
    try:
        stack.callback(server(path).close)
    except OSError as cause:
        _log.warning(f"no {what} at {path}: {cause.strerror or cause}")
