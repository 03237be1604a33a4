# SPDX-License-Identifier: Apache-2.0
"""A spare process: it has imported an engine, waits for an assignment, and then runs as if it was started for it.

Started as `python -m zpptool.process.run_module zpptool.supervisor.standby.process FD`. FD is one end of a socket pair;
the parent has the other. The parent sends the specs of the stages, receives `READY`, and sends the assignment. The
process ends when the parent closes its end.
"""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import sys
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from zpptool.config.engine_kind import ENGINES
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError
from zpptool.process.child import run_child
from zpptool.supervisor.standby.page_cache import read_ahead, weights_of

READY, TAKEN = b"ready", b"taken"


class Assignment(msgspec.Struct, frozen=True):
    """What a spare becomes.

    Attributes:
        argv: the module to run, and its arguments.
        env: added to the environment.
        log: the file to which its output is appended; empty to leave its output as it is.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    log: str = ""


def main() -> None:
    """Wait for an assignment, and run it."""
    with Connection(int(sys.argv[1])) as connection:
        os.set_inheritable(connection.fileno(), False)
        try:
            assignment = _wait(connection)
        except EOFError:
            return
    os.environ.update(assignment.env)
    if assignment.log:
        _redirect_output(assignment.log)
    sys.argv[:] = list(assignment.argv)
    runpy.run_module(assignment.argv[0], run_name="__main__", alter_sys=True)


def _wait(connection: Connection) -> Assignment:
    """Prepare, report that, and return the assignment when it arrives.

    Raises:
        EOFError: the parent has closed its end.
    """
    specs = msgspec.msgpack.decode(connection.recv_bytes(), type=tuple[StageSpec, ...])
    read_ahead(weights_of(specs))
    _import_engine(specs[-1])
    connection.send_bytes(READY)
    assignment = msgspec.msgpack.decode(connection.recv_bytes(), type=Assignment)
    connection.send_bytes(TAKEN)
    return assignment


def _import_engine(spec: StageSpec) -> None:
    """Import what any stage of this spec's engine needs, and what the head needs.

    Raises:
        ZppError: the imports have initialized a GPU; which one the assignment may use is not known yet.
    """
    modules = ENGINES[spec.engine]
    for module in (modules.worker, modules.head):
        importlib.import_module(module)
        del sys.modules[module]  # one of them is run later, as the main module
    importlib.import_module(modules.preload).preload(spec)
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise ZppError("the imports have initialized a GPU, so this process can take no assignment")
    gc.collect()
    gc.freeze()  # vLLM collects twice when it loads; that took 0.8 s with every object of its modules


def _redirect_output(log: str) -> None:
    """Append all output to a file from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for output in (1, 2):
        os.dup2(file, output)
    os.close(file)


if __name__ == "__main__":
    run_child("spare", main)
