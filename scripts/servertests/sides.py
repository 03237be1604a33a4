# SPDX-License-Identifier: Apache-2.0
"""The three sides as servers of one API: unsplit vLLM, two stages of it, and two of the embedded engine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from servertests.groups import ADAPTERS, Group

UNSPLIT, STAGES, EMBEDDED = "unsplit", "stages", "embedded"
SIDES = (UNSPLIT, STAGES, EMBEDDED)
READY_S = 1800
KV_BYTES = 1 << 30


def command(side: str, group: Group, model: Path, adapter: Path, port: int) -> list[str]:
    """The command line of a side's server for a group of tests."""
    key = ["--api-key", group.api_key] if group.api_key else []
    if side == UNSPLIT:
        words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
        return [*words, "--host", "127.0.0.1", "--served-model-name", group.served_name, *key, *_engine(group, adapter)]
    words = [sys.executable, "-m", "zpptool", "serve", str(model), "--num-stages", "2", "--port", str(port)]
    words += ["--served-model-name", group.served_name, "--dtype", "float32", "--start-timeout", str(READY_S), *key]
    return [*words, "--engine", "transformers"] if side == EMBEDDED else [*words, "--", *_engine(group, adapter)]


def _engine(group: Group, adapter: Path) -> list[str]:
    """vLLM's arguments; float32, in which an answer does not depend on what else is computed with it."""
    words = ["--enforce-eager", "--dtype", "float32", "--max-model-len", str(group.max_model_len)]
    words += ["--max-num-seqs", "32", "--kv-cache-memory-bytes", str(KV_BYTES), *group.args]
    if group.adapters:
        words += [*ADAPTERS, "--lora-modules", *(f"{name}={adapter}" for name in group.adapters)]
    return words


@dataclass
class Server:
    """A running server.

    Attributes:
        url: its address.
        process: what was started.
        log: what it prints.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self) -> None:
        """Return when it takes requests.

        Raises:
            SystemExit: it ended, or it took too long.
        """
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if not self.is_running():
                raise SystemExit(f"the server ended with {self.process.returncode}; its log is {self.log}")
            with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.5)
        raise SystemExit(f"the server is not ready after {READY_S} s; its log is {self.log}")

    def stage_processes(self) -> dict[int, psutil.Process]:
        """The process that computes each stage, of those that run."""
        found = {}
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    words = process.cmdline()
                    if "worker" in " ".join(words[:-1]) and (stage := re.search(r'"stage":(\d+)', words[-1])):
                        found[int(stage[1])] = process
        return found

    def stop(self) -> None:
        """End it and every process that it started."""
        tree: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            tree = psutil.Process(self.process.pid).children(recursive=True)
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            if not self.is_running():
                break
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        for left in psutil.wait_procs(tree, timeout=5)[1]:
            with suppress(psutil.NoSuchProcess):
                left.kill()


def start(side: str, group: Group, model: Path, adapter: Path, log: Path) -> Server:
    """Start a side's server; its output goes to `log`."""
    port = _free_port()
    env = {**os.environ, "VLLM_NO_USAGE_STATS": "1", **group.env}
    if side == UNSPLIT:
        env["VLLM_PLUGINS"] = ""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(side, group, model, adapter, port),
            env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return Server(f"http://127.0.0.1:{port}", process, log)


def kill_now_and_then(server: Server, every_s: float, wait: Callable[[float], bool]) -> int:
    """Kill one stage after the other, each `every_s` seconds after the one before; returns how many were killed.

    Args:
        server: whose stages.
        every_s: seconds between two.
        wait: waits so many seconds; true if it is to end.
    """
    killed = 0
    while not wait(every_s):
        stages = server.stage_processes()
        if process := stages.get(killed % 2):
            with suppress(psutil.NoSuchProcess):
                process.kill()
                killed += 1
    return killed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
