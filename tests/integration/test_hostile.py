# SPDX-License-Identifier: Apache-2.0
"""A hostile client at every port of a running pipeline changes neither its answers nor its memory."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

pytest.importorskip("transformers")
pytest.importorskip("httpx")

import httpx
import zmq

from tests.conftest import Ran
from tests.stages import Stage, completion, free_base_port, started, wait_until_ready

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

READY_S = 120
LASTS_S = 2.0
CONNECTIONS = 300
GROWTH_BYTES = 96 << 20
GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
READY = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
Attack = Callable[[int, float], None]


def call(port: int) -> socket.socket:
    """A connection with short timeouts."""
    made = socket.create_connection(("127.0.0.1", port), timeout=2)
    made.settimeout(0.2)
    return made


def noise(port: int, end: float) -> None:
    """Random bytes."""
    while time.monotonic() < end:
        with suppress(OSError), call(port) as stranger:
            stranger.sendall(random.randbytes(20_000))


def broken_handshake(port: int, end: float) -> None:
    """The greeting of ZMTP, followed by bytes that are not ZMTP."""
    while time.monotonic() < end:
        with suppress(OSError), call(port) as stranger:
            stranger.sendall(GREETING)
            stranger.recv(64)
            stranger.sendall(random.choice([random.randbytes(3000), READY + random.randbytes(3000)]))
            stranger.recv(100)


def boundless_frames(port: int, end: float) -> None:
    """A well-behaved peer that announces frames as large as all memory."""
    while time.monotonic() < end:
        with suppress(OSError), call(port) as stranger:
            stranger.sendall(GREETING + READY)
            stranger.recv(200)
            for nbytes in (1 << 62, 1 << 40, 512 << 20):
                stranger.sendall(b"\x02" + nbytes.to_bytes(8, "big") + bytes(1 << 16))


def random_messages(port: int, end: float) -> None:
    """A DEALER socket, as a stage has one, that sends random messages."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.sndtimeo = 100
        stranger.connect(f"tcp://127.0.0.1:{port}")
        while time.monotonic() < end:
            parts = [random.randbytes(random.randrange(300)) for _ in range(random.randrange(1, 5))]
            parts[0] = random.choice([b"", b"ZPPW\x03\x03", b"ZPPC"]) + parts[0]
            with suppress(zmq.Again):
                stranger.send_multipart(parts)


def many_that_are_slow(port: int, end: float) -> None:
    """Hundreds of connections that send their greeting byte by byte."""
    with ExitStack() as held:
        slow = []
        for _ in range(CONNECTIONS):
            with suppress(OSError):
                slow.append(held.enter_context(call(port)))
        for byte in GREETING:
            if time.monotonic() > end:
                return
            for stranger in slow:
                with suppress(OSError):
                    stranger.sendall(bytes([byte]))
            time.sleep(0.05)


ATTACKS = (noise, broken_handshake, boundless_frames, random_messages, many_that_are_slow)


def memory(stages: list[Stage]) -> int:
    """Resident memory of all processes of the pipeline."""
    total = 0
    for process in {found for stage in stages for found in stage.look()}:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def test_the_pipeline_continues_under_attack(
    tiny_model: Callable[..., Path], tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    model = tiny_model("llama", layers=4, initializer_range=0.5)
    split = zpptool("split", model, "--num-stages", 3, "--output-dir", tmp_path / "stages")
    assert split.code == 0, split.err
    base = free_base_port(5)  # three links, the return, the API
    common = ["--engine", "transformers", "--base-port", base, "--port", base + 4]
    commands = [[tmp_path / "stages" / f"stage_{stage}", *common] for stage in range(3)]
    url = f"http://127.0.0.1:{base + 4}"
    with started(tmp_path, commands) as stages, httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        wait_until_ready(url, stages, READY_S)
        answer = completion(client, prompt="one two")["text"]
        before = memory(stages)
        for attack in ATTACKS:
            end = time.monotonic() + LASTS_S
            strangers = [threading.Thread(target=attack, args=(base + port, end)) for port in (0, 1, 3)]
            for stranger in strangers:
                stranger.start()
            asked = 0
            while asked < 3 or any(stranger.is_alive() for stranger in strangers):
                assert completion(client, prompt="one two")["text"] == answer, attack.__name__
                asked += 1
            assert all(stage.process.poll() is None for stage in stages), attack.__name__
            grown = memory(stages) - before
            assert grown < GROWTH_BYTES, f"{attack.__name__}: {grown >> 20} MiB"
        noise(base + 4, time.monotonic() + LASTS_S)
        assert completion(client, prompt="one two")["text"] == answer
    logs = "".join(stage.text() for stage in stages)
    assert "was refused" in logs
    assert logs.count("zpptool stage") < 300, "the log is flooded"
