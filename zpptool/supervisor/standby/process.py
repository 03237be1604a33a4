# SPDX-License-Identifier: Apache-2.0
"""A spare process: it has imported an engine, waits for a part, and then runs it as if it had been started for it.

Started as `python -m zpptool.process.run_module zpptool.supervisor.standby.process FD`.
Over a socket pair that only the two hold its
parent says what it may become, hears that it is ready, and hands it its part. It ends when the parent has gone.
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


class Part(msgspec.Struct, frozen=True):
    """What a spare becomes.

    Attributes:
        words: the module to run, and its arguments.
        env: added to the environment.
        log: the file that its output goes on in; empty where it stays as it is.
    """

    words: tuple[str, ...]
    env: dict[str, str]
    log: str = ""


def main() -> None:
    """Wait for a part, and play it."""
    with Connection(int(sys.argv[1])) as line:
        os.set_inheritable(line.fileno(), False)
        try:
            part = _wait(line)
        except EOFError:
            return
    os.environ.update(part.env)
    if part.log:
        _go_on_in(part.log)
    sys.argv[:] = list(part.words)
    runpy.run_module(part.words[0], run_name="__main__", alter_sys=True)


def _wait(line: Connection) -> Part:
    """Get ready, say so, and return the part when it comes.

    Raises:
        EOFError: the parent has gone.
    """
    specs = msgspec.msgpack.decode(line.recv_bytes(), type=tuple[StageSpec, ...])
    read_ahead(weights_of(specs))
    _import(specs[-1])
    line.send_bytes(READY)
    part = msgspec.msgpack.decode(line.recv_bytes(), type=Part)
    line.send_bytes(TAKEN)
    return part


def _import(like: StageSpec) -> None:
    """Import what any stage of this engine needs, and the head.

    Raises:
        ZppError: a device was set up meanwhile; which one the part may see is not known yet.
    """
    modules = ENGINES[like.engine]
    for module in (modules.worker, modules.head):
        importlib.import_module(module)
        del sys.modules[module]  # one of them is run later, as the main module
    importlib.import_module(modules.preload).preload(like)
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise ZppError("the imports have set up a GPU, so this process can take no part")
    gc.collect()
    gc.freeze()  # vLLM collects twice when it loads, and every object of its modules was looked at: 0.8 s


def _go_on_in(log: str) -> None:
    """Have all output go to the end of that file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for output in (1, 2):
        os.dup2(file, output)
    os.close(file)


if __name__ == "__main__":
    run_child("spare", main)
