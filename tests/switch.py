# SPDX-License-Identifier: Apache-2.0
"""A simulated network for tests: it carries IP packets between hosts, and delays, loses, reorders, duplicates, corrupts
or drops them on request.

The invariant: each host's kernel sees single packets, as on a real network. A host is a network namespace whose `eth0`
is a TUN device that this process reads and writes. (The kernel's own netem is a module that many machines lack.)

It runs as a process: `python switch.py NAMESPACE=ADDRESS ...`. Each line of standard input is a JSON object with the
fields of a `Disturbance` and `hosts`, and is answered by a line when it is in force. The process ends at end of input.
"""

from __future__ import annotations

import fcntl
import heapq
import ipaddress
import itertools
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from dataclasses import dataclass

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IP_HEADER_BYTES = 20
_MTU = 1500
_AT_ONCE = 64


@dataclass(frozen=True)
class Disturbance:
    """What happens to the packets that a host sends: milliseconds, percent of packets, Mbit/s (0: no limit).

    A reordered packet is delivered at once, before those that are delayed.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    rate_mbit: float = 0.0
    queue_packets: int = 1000


@dataclass
class Port:
    """One host's connection to the switch."""

    tun: int
    out: Disturbance = Disturbance()
    free_at: float = 0.0
    waiting: int = 0


class Switch:
    """Forwards packets by their destination."""

    def __init__(self) -> None:
        self.ports: dict[bytes, Port] = {}
        self._due: list[tuple[float, int, Port, Port, bytes]] = []
        self._count = itertools.count()
        self._random = random.Random(1)

    def take(self, source: Port, packet: bytes, now: float) -> None:
        """Accept a packet that a host has sent."""
        target = self.ports.get(packet[16:20]) if len(packet) >= _IP_HEADER_BYTES else None
        out = source.out
        if target is None or self._happens(out.loss) or source.waiting >= out.queue_packets:
            return
        at = now
        if out.rate_mbit:
            at = source.free_at = max(now, source.free_at) + len(packet) * 8 / (out.rate_mbit * 1e6)
        if not self._happens(out.reorder):
            at += (out.delay_ms + self._random.uniform(-out.jitter_ms, out.jitter_ms)) / 1000
        if self._happens(out.corrupt):
            offset = self._random.randrange(_IP_HEADER_BYTES, len(packet))
            flipped = packet[offset] ^ (1 << self._random.randrange(8))
            packet = packet[:offset] + bytes([flipped]) + packet[offset + 1 :]
        for _ in range(2 if self._happens(out.duplicate) else 1):
            source.waiting += 1
            heapq.heappush(self._due, (at, next(self._count), source, target, packet))

    def deliver(self, now: float) -> float | None:
        """Deliver the packets that are due. Returns the seconds until the next one is due, None if there is none."""
        while self._due and self._due[0][0] <= now:
            _, _, source, target, packet = heapq.heappop(self._due)
            source.waiting -= 1
            try:
                os.write(target.tun, packet)
            except OSError:
                continue  # that host has ended, or its queue is full: packets may be lost
        return max(self._due[0][0] - now, 0.0) if self._due else None

    def _happens(self, percent: float) -> bool:
        return percent > 0 and self._random.random() * 100 < percent


def connect_host(namespace: str, address: str) -> Port:
    """Connect a host: make its `eth0`."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"zpp{os.getpid()}.{tun}"
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    _ip("link", "set", name, "netns", namespace, "name", "eth0", "mtu", str(_MTU))
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", namespace, "link", "set", "eth0", "up")
    return Port(tun)


def main() -> None:
    """Carry packets until the end of input."""
    switch = Switch()
    for argument in sys.argv[1:]:
        namespace, address = argument.split("=")
        switch.ports[ipaddress.IPv4Address(address).packed] = connect_host(namespace, address)
    by_tun = {port.tun: port for port in switch.ports.values()}
    print("ready", flush=True)
    requests = sys.stdin.fileno()
    poller = select.poll()
    for descriptor in (requests, *by_tun):
        poller.register(descriptor, select.POLLIN)
    while True:
        pause = switch.deliver(time.monotonic())
        for descriptor, _ in poller.poll(None if pause is None else pause * 1000):
            if descriptor == requests:
                line = sys.stdin.readline()
                if not line:
                    return
                fields = json.loads(line)
                hosts = fields.pop("hosts")
                for number, port in enumerate(by_tun.values()):
                    if hosts is None or number in hosts:
                        port.out = Disturbance(**fields)
                print("done", flush=True)
            else:
                _drain(switch, by_tun[descriptor])


def _drain(switch: Switch, port: Port) -> None:
    for _ in range(_AT_ONCE):
        try:
            packet = os.read(port.tun, 65536)
        except BlockingIOError:
            return
        switch.take(port, packet, time.monotonic())


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    main()
