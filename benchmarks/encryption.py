# SPDX-License-Identifier: Apache-2.0
"""What encryption costs on a link: two bf16 tensors sent and a short answer, over loopback tcp.

    python benchmarks/encryption.py [--seconds 5]

`plain` is a link without keys, `curve` one with keys. `aes-gcm` is a link without keys whose frames are sealed with
AES-256-GCM, whole, before they are sent, and opened when they are received (nonce: a counter; bound to the header).
None uses shared memory. The variants are measured in short turns, in random order. Shown are medians in microseconds,
the ratio to `plain`, and the bytes a second. Needs `cryptography` for the third.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from zpptool.wire.link import LinkOptions, LinkReceiver, LinkSender
from zpptool.wire.message.framing import Kind
from zpptool.wire.security.exposure import LinkSecurity
from zpptool.wire.security.key_files import generate, link_keys

TOKENS = (1, 16, 64, 512, 2048, 8192)
WIDTH = 4096
VARIANTS = ("plain", "curve", "aes-gcm")
TURN = 4
WARM_UP = 8
TIMEOUT_S = 60.0
KEY = bytes(range(32))
HEADER = b"hidden_states, residual"


def sealed(frames: list[memoryview], number: int) -> list[bytes]:
    """Each frame under a nonce of its own."""
    cipher = AESGCM(KEY)
    return [
        cipher.encrypt((2 * number + place).to_bytes(12, "little"), frame, HEADER) for place, frame in enumerate(frames)
    ]


def opened(frames: tuple[memoryview, ...], number: int) -> list[bytes]:
    """The frames that `sealed` has sealed."""
    cipher = AESGCM(KEY)
    return [
        cipher.decrypt((2 * number + place).to_bytes(12, "little"), frame, HEADER) for place, frame in enumerate(frames)
    ]


def receive(link: LinkReceiver, variant: str, number: int) -> None:
    """Receive one message, as plain bytes."""
    message = link.recv(TIMEOUT_S)
    if variant == "aes-gcm":
        opened(message.frames, number)


def echo(addresses: dict[str, str], files: Any, turns: Any, answers: Any) -> None:
    """The other process: receives messages and answers each with a notification."""
    receiver = {}
    for variant, address in addresses.items():
        keys = link_keys(files[1], 1, 0) if variant == "curve" else None
        receiver[variant] = LinkReceiver(
            address, stage=1, peer=0, options=LinkOptions(security=LinkSecurity(keys), shared_memory=False)
        )
    answers.put("ready")
    numbers = dict.fromkeys(VARIANTS, 0)
    while variant := turns.get():
        receive(receiver[variant], variant, numbers[variant])
        numbers[variant] += 1
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
        keys = link_keys(files[0], 0, 1) if variant == "curve" else None
        sender[variant] = LinkSender(
            "tcp://127.0.0.1:*", stage=0, peer=1, options=LinkOptions(security=LinkSecurity(keys), shared_memory=False)
        )
        sender[variant].on_notification(acknowledged.put)
    addresses = {variant: link.endpoint for variant, link in sender.items()}
    other = spawn.Process(target=echo, args=(addresses, files, turns, answers), daemon=True)
    other.start()
    answers.get()
    numbers = dict.fromkeys(VARIANTS, 0)
    print(f"{'tokens':>6} {'MiB':>6} " + " ".join(f"{variant:>28}" for variant in VARIANTS))
    for tokens in TOKENS:
        frames = [torch.randn(tokens, WIDTH).bfloat16().view(torch.uint8).numpy().data.cast("B") for _ in range(2)]
        nbytes = sum(frame.nbytes for frame in frames)

        def send(variant: str, frames: list[memoryview] = frames) -> None:
            turns.put(variant)
            parts = sealed(frames, numbers[variant]) if variant == "aes-gcm" else frames
            numbers[variant] += 1
            sender[variant].send(Kind.CONTROL, HEADER, parts, timeout_s=TIMEOUT_S)
            acknowledged.get(timeout=TIMEOUT_S)

        medians = measure(send, given.seconds)
        cells = [
            f"{own * 1e6:>9.0f} ({own / medians['plain']:5.2f}x, {nbytes / own / 1e9:5.2f} GB/s)"
            for own in (medians[one] for one in VARIANTS)
        ]
        print(f"{tokens:>6} {nbytes / 2**20:>6.2f} " + " ".join(cells), flush=True)
    turns.put("")
    other.join()


if __name__ == "__main__":
    main()
