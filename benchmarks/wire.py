# SPDX-License-Identifier: Apache-2.0
"""What the wire costs: round trips of two bf16 tensors between two processes, ours beside bare ZeroMQ of these bytes.

    python benchmarks/wire.py [--transport tcp|ipc] [--seconds 3]

The variants take short turns in random order, so that a busy machine slows all alike. Shown are medians in microseconds
and the ratio to bare ZeroMQ, whose PUSH and PULL take the two tensors as two frames and copy where that is faster.
`link` is PushLink and PullLink with these frames, `communicator` is send_tensor_dict and recv_tensor_dict.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import socket
import statistics
import tempfile
import time

import torch
import zmq

from zpptool.wire import ZeroMQCommunicator
from zpptool.wire.link import ZERO_COPY_BYTES, PullLink, PushLink
from zpptool.wire.messages import Kind

TOKENS = (1, 16, 64, 512, 2048)
WIDTH = 4096
VARIANTS = ("bare", "link", "communicator")
TURN = 8
WARM_UP = 32  # messages of each size and variant: the allocator maps and unmaps large frames until it has met a few
TIMEOUT_S = 30.0

Tensors = dict[str, torch.Tensor]


class Side:
    """One process's ends of three connections: bare sockets, links, a communicator."""

    def __init__(self, rank: int, mine: list[str], other: list[str]) -> None:
        context = zmq.Context.instance()
        self.push, self.pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        self.push.bind(mine[0])
        self.pull.connect(other[0])
        self.out = PushLink(mine[1], stage=rank, peer=1 - rank)
        self.into = PullLink(other[1], stage=rank, peer=1 - rank)
        self.communicator = ZeroMQCommunicator(rank, 2, bind=mine[2], connect=other[2], timeout_s=TIMEOUT_S)

    def send(self, variant: str, tensors: Tensors) -> None:
        """Send by one of the variants."""
        match variant:
            case "bare":
                frames = [_memory(tensor) for tensor in tensors.values()]
                self.push.send_multipart(frames, copy=frames[0].nbytes < ZERO_COPY_BYTES)
            case "link":
                self.out.send(Kind.CONTROL, b"", [_memory(one) for one in tensors.values()], timeout_s=TIMEOUT_S)
            case "communicator":
                self.communicator.send_tensor_dict(tensors)

    def receive(self, variant: str) -> Tensors:
        """Receive what the other side sent by that variant."""
        match variant:
            case "bare":
                return _tensors([frame.buffer for frame in self.pull.recv_multipart(copy=False)])
            case "link":
                return _tensors(list(self.into.recv(TIMEOUT_S).frames))
            case _:
                return self.communicator.recv_tensor_dict()


def _memory(tensor: torch.Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data


def _tensors(frames: list[memoryview]) -> Tensors:
    return {str(index): torch.frombuffer(frame, dtype=torch.bfloat16) for index, frame in enumerate(frames)}


def echo(mine: list[str], other: list[str], turns: multiprocessing.SimpleQueue[str]) -> None:
    """The other process: sends back what it gets."""
    torch.set_num_threads(1)
    side = Side(1, mine, other)
    while variant := turns.get():
        side.send(variant, side.receive(variant))


def measure(side: Side, turns: multiprocessing.SimpleQueue[str], tokens: int, seconds: float) -> dict[str, float]:
    """Median round trip of each variant, in microseconds."""
    tensors = {name: torch.randn(tokens, WIDTH).bfloat16() for name in ("hidden_states", "residual")}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times[VARIANTS[0]]) < 2 * WARM_UP:
        for variant in random.sample(VARIANTS, len(VARIANTS)):
            for _ in range(TURN):
                turns.put(variant)
                time.sleep(0.0005)  # the other process waits in its receive before the clock starts
                start = time.perf_counter()
                side.send(variant, tensors)
                side.receive(variant)
                times[variant].append(time.perf_counter() - start)
    return {variant: statistics.median(taken[WARM_UP:]) * 1e6 for variant, taken in times.items()}


def addresses(transport: str, directory: str) -> list[str]:
    """Six endpoints that are free now."""
    if transport == "ipc":
        return [f"ipc://{directory}/{number}" for number in range(6)]
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(6)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return [f"tcp://127.0.0.1:{port}" for port in ports]


def main() -> None:
    """Measure and print one line for each size."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--transport", choices=("tcp", "ipc"), default="tcp")
    options.add_argument("--seconds", type=float, default=3.0, help="for each size")
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        every = addresses(given.transport, directory)
        spawn = multiprocessing.get_context("spawn")
        turns: multiprocessing.SimpleQueue[str] = spawn.SimpleQueue()
        other = spawn.Process(target=echo, args=(every[3:], every[:3], turns), daemon=True)
        other.start()
        side = Side(0, every[:3], every[3:])
        print(f"{'tokens':>6} " + " ".join(f"{variant:>18}" for variant in VARIANTS))
        for tokens in TOKENS:
            medians = measure(side, turns, tokens, given.seconds)
            cells = (f"{medians[variant]:>10.0f} ({medians[variant] / medians['bare']:.2f}x)" for variant in VARIANTS)
            print(f"{tokens:>6} " + " ".join(cells))
        turns.put("")
        other.join()


if __name__ == "__main__":
    main()
