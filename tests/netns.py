# SPDX-License-Identifier: Apache-2.0
"""Hosts on one machine: network namespaces on a switch of our own (`switch.py`), whose links can be slowed, made to
lose, or cut.

What leaves a host bears its disturbance, so what two hosts say to each other is disturbed both ways.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PORT_BASE = 15550
_CLONE_NEWNET = 0x40000000
_count = itertools.count()
_SWITCH = Path(__file__).with_name("switch.py")


class Network:
    """So many hosts with the addresses 10.77.0.1, .2, ... that reach each other and nothing else.

    Attributes:
        addresses: of the hosts, in order.
    """

    def __init__(self, hosts: int) -> None:
        self._name = f"zpp{os.getpid()}n{next(_count)}"
        self._switch: subprocess.Popen[str] | None = None
        self.addresses = [f"10.77.0.{host + 1}" for host in range(hosts)]

    def name(self, host: int) -> str:
        """The namespace of a host."""
        return f"{self._name}h{host}"

    def open(self) -> None:
        """Make namespaces and switch.

        Raises:
            OSError: not on this machine; in words.
        """
        cables = []
        for host, address in enumerate(self.addresses):
            _ip("netns", "add", self.name(host))
            _ip("-n", self.name(host), "link", "set", "lo", "up")
            cables.append(f"{self.name(host)}={address}")
        self._switch = subprocess.Popen(
            [sys.executable, str(_SWITCH), *cables],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if self._answer() != "ready":
            _, told = self._switch.communicate()
            raise OSError(told.strip().splitlines()[-1])

    def close(self) -> None:
        """Take all of it away."""
        if self._switch is not None:
            self._switch.communicate()
        for host in range(len(self.addresses)):
            subprocess.run(["ip", "netns", "delete", self.name(host)], check=False, stderr=subprocess.DEVNULL)

    def words(self, host: int, *words: str) -> list[str]:
        """A command line that runs these words on a host."""
        return ["ip", "netns", "exec", self.name(host), *words]

    @contextmanager
    def inside(self, host: int) -> Iterator[None]:
        """For the duration of a block, what this thread opens and starts is on a host."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name(host)}", os.O_RDONLY)
        try:
            _enter(there)
            yield
        finally:
            _enter(here)
            os.close(there)
            os.close(here)

    def disturb(self, *, hosts: Sequence[int] | None = None, **disturbance: float) -> None:
        """Disturb what leaves these hosts (all of them, if None), by the fields of `switch.Disturbance`; none end it.
        It is in force when this returns."""
        assert self._switch is not None
        assert self._switch.stdin is not None
        self._switch.stdin.write(json.dumps({"hosts": hosts, **disturbance}) + "\n")
        self._switch.stdin.flush()
        assert self._answer() == "done"

    @contextmanager
    def disturbed(self, *, hosts: Sequence[int] | None = None, **disturbance: float) -> Iterator[None]:
        """As `disturb`, for the duration of a block."""
        self.disturb(hosts=hosts, **disturbance)
        try:
            yield
        finally:
            self.disturb(hosts=hosts)

    def _answer(self) -> str:
        assert self._switch is not None
        assert self._switch.stdout is not None
        return self._switch.stdout.readline().strip()


@contextmanager
def network(hosts: int) -> Iterator[Network]:
    """A network, gone afterwards."""
    made = Network(hosts)
    try:
        made.open()
        yield made
    finally:
        made.close()


@cache
def why_not() -> str:
    """Why this machine has no network for a test; empty if it has."""
    if not shutil.which("ip"):
        return "ip (iproute2) is not installed"
    probe = Network(1)
    try:
        probe.open()
    except OSError as refused:
        return f"network namespaces with TUN devices cannot be made here ({refused})"
    finally:
        probe.close()
    return ""


def _enter(namespace: int) -> None:
    """Move this thread there (`os.setns` is of Python 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip())
