# SPDX-License-Identifier: Apache-2.0
"""Hosts on one machine: network namespaces on a switch, whose links can be slowed, made to lose, or cut.

Each host's way out of its own namespace bears the disturbance, so what two hosts say to each other is disturbed both
ways.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

PORT_BASE = 15550


class Network:
    """So many hosts with the addresses 10.77.0.1, .2, ... that reach each other and nothing else.

    Attributes:
        addresses: of the hosts, in order.
    """

    def __init__(self, hosts: int) -> None:
        self._name = f"zpp{os.getpid()}"
        self._switch = f"{self._name}s"
        self.addresses = [f"10.77.0.{host + 1}" for host in range(hosts)]

    def name(self, host: int) -> str:
        """The namespace of a host."""
        return f"{self._name}h{host}"

    def open(self) -> None:
        """Make namespaces, switch and cables."""
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")
        for host, address in enumerate(self.addresses):
            name = self.name(host)
            _ip("netns", "add", name)
            _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{host}", "netns", self._switch)
            _ip("-n", self._switch, "link", "set", f"port{host}", "master", "switch", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")

    def close(self) -> None:
        """Take all of it away."""
        for name in (self._switch, *map(self.name, range(len(self.addresses)))):
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)

    def words(self, host: int, *words: str) -> list[str]:
        """A command line that runs these words on a host."""
        return ["ip", "netns", "exec", self.name(host), *words]

    def disturb(self, *netem: str, hosts: Sequence[int] | None = None) -> None:
        """Disturb what leaves these hosts (all of them, if None), in the words of tc-netem; no words end it."""
        for host in range(len(self.addresses)) if hosts is None else hosts:
            at = ["tc", "-n", self.name(host), "qdisc"]
            subprocess.run([*at, "del", "dev", "eth0", "root"], check=False, stderr=subprocess.DEVNULL)
            if netem:
                subprocess.run([*at, "add", "dev", "eth0", "root", "netem", *netem], check=True)

    @contextmanager
    def disturbed(self, *netem: str, hosts: Sequence[int] | None = None) -> Iterator[None]:
        """As `disturb`, for the duration of a block."""
        self.disturb(*netem, hosts=hosts)
        try:
            yield
        finally:
            self.disturb(hosts=hosts)


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
    if not shutil.which("ip") or not shutil.which("tc"):
        return "ip and tc (iproute2) are not installed"
    probe = Network(1)
    try:
        probe.open()
        probe.disturb("delay", "1ms")
    except subprocess.CalledProcessError as refused:
        told = (refused.stderr or b"").decode().strip() if isinstance(refused.stderr, bytes) else refused.stderr or ""
        return f"network namespaces with tc netem cannot be made here ({told or refused})"
    finally:
        probe.close()
    return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
