# SPDX-License-Identifier: Apache-2.0
"""What encryption costs on a link: two bf16 tensors sent and a short answer, over loopback tcp.

    python benchmarks/encryption.py [--seconds 5]

`plain` is a link without keys, `curve` one with keys and without the sealed channel, `sealed` one with both. None uses
shared memory. The variants are measured in short turns, in random order. Shown are medians in microseconds, the ratio
to `plain`, the bytes a second, and how much faster `sealed` is than `curve`. Before that: how fast one thread seals
records, and two.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import random
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from zpptool.wire.link import LinkOptions, LinkReceiver, LinkSender
from zpptool.wire.message.framing import Kind
from zpptool.wire.sealed.record import PIECE_BYTES, Piece, Sealer
from zpptool.wire.sealed.session_keys import lane_key
from zpptool.wire.security.exposure import LinkSecurity
from zpptool.wire.security.key_files import generate, link_keys

TOKENS = (1, 16, 64, 512, 2048, 8192)
WIDTH = 4096
VARIANTS = ("plain", "curve", "sealed")
TURN = 4
WARM_UP = 8
TIMEOUT_S = 60.0
HEADER = b"hidden_states, residual"


def seal_rate(threads: int, seconds: float) -> float:
    """Bytes a second that so many threads seal, each with a lane of its own."""
    data = memoryview(bytes(PIECE_BYTES))
    sealed = [0] * threads

    def work(lane: int) -> None:
        sealer = Sealer(lane_key(bytes(32), lane))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            sealer.seal(Piece(1, 0, PIECE_BYTES), data)
            sealed[lane] += PIECE_BYTES

    workers = [threading.Thread(target=work, args=(lane,)) for lane in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(sealed) / seconds


def link_options(variant: str, place: int, files: Any) -> LinkOptions:
    """The options of one end of a variant's link."""
    keys = None if variant == "plain" else link_keys(files[place], place, 1 - place)
    return LinkOptions(security=LinkSecurity(keys), shared_memory=False, sealed=variant == "sealed")


def echo(addresses: dict[str, str], files: Any, turns: Any, answers: Any) -> None:
    """The other process: receives messages and answers each with a notification."""
    receiver = {}
    for variant, address in addresses.items():
        receiver[variant] = LinkReceiver(address, stage=1, peer=0, options=link_options(variant, 1, files))
    answers.put("ready")
    while variant := turns.get():
        receiver[variant].recv(TIMEOUT_S)
        receiver[variant].notify(b"taken")


def measure(send: Callable[[str], None], seconds: float) -> dict[str, float]:
    """Median time of each variant, in seconds."""
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times["plain"]) < 2 * WARM_UP:
        for variant in random.sample(VARIANTS, len(VARIANTS)):
            for _ in range(TURN):
                start = time.perf_counter()
                send(variant)
                times[variant].append(time.perf_counter() - start)
    return {variant: statistics.median(taken[WARM_UP:]) for variant, taken in times.items()}


def main() -> None:
    """Measure and print one line for each size."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=5.0, help="for each size")
    given = options.parse_args()
    torch.set_num_threads(1)
    files = generate(2)
    spawn = multiprocessing.get_context("spawn")
    turns, answers = spawn.SimpleQueue(), spawn.SimpleQueue()
    acknowledged: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    sender = {}
    for variant in VARIANTS:
        sender[variant] = LinkSender("tcp://127.0.0.1:*", stage=0, peer=1, options=link_options(variant, 0, files))
        sender[variant].on_notification(acknowledged.put)
    addresses = {variant: link.endpoint for variant, link in sender.items()}
    other = spawn.Process(target=echo, args=(addresses, files, turns, answers), daemon=True)
    other.start()
    answers.get()
    rates = [statistics.median(seal_rate(threads, 0.5) for _ in range(5)) / 1e9 for threads in (1, 2)]
    print(f"sealing: {rates[0]:.2f} GB/s on one thread, {rates[1]:.2f} on two ({rates[1] / rates[0]:.2f}x)")
    print(f"{'tokens':>6} {'MiB':>6} " + " ".join(f"{variant:>28}" for variant in VARIANTS))
    for tokens in TOKENS:
        frames = [torch.randn(tokens, WIDTH).bfloat16().view(torch.uint8).numpy().data.cast("B") for _ in range(2)]
        nbytes = sum(frame.nbytes for frame in frames)

        def send(variant: str, frames: list[memoryview] = frames) -> None:
            turns.put(variant)
            sender[variant].send(Kind.CONTROL, HEADER, frames, timeout_s=TIMEOUT_S)
            acknowledged.get(timeout=TIMEOUT_S)

        medians = measure(send, given.seconds)
        cells = [
            f"{own * 1e6:>9.0f} ({own / medians['plain']:5.2f}x, {nbytes / own / 1e9:5.2f} GB/s)"
            for own in (medians[one] for one in VARIANTS)
        ]
        gain = medians["curve"] / medians["sealed"]
        print(f"{tokens:>6} {nbytes / 2**20:>6.2f} " + " ".join(cells) + f" {gain:5.2f}x curve", flush=True)
    turns.put("")
    other.join()


if __name__ == "__main__":
    main()
