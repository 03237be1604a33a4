# SPDX-License-Identifier: Apache-2.0
"""A ring across hosts whose network is slow, lossy or cut: every answer is correct, or one error names the place.

The error comes in time, and no process is left.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from netns import PORT_BASE, Network, network, why_not
from toys import changed, ring_specs, start_process

from zpptool.config.endpoints import plan_endpoints
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ExitCode
from zpptool.wire.security.key_files import generate, write_key_files

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

HANG_GUARD_S = 60.0


@pytest.fixture(scope="module")
def hosts() -> Iterator[Network]:
    """Three hosts."""
    with network(3) as made:
        yield made


class FarRing:
    """A head and stage 0 on the first host, and one stage on each of the others, as processes."""

    def __init__(self, hosts: Network, directory: Path, **fields: object) -> None:
        self.hosts = hosts
        self.directory = directory
        links = plan_endpoints(3, PORT_BASE, hosts.addresses)
        files = write_key_files(generate(3), directory / "keys")
        self.specs = [
            changed(spec, bind=link.bind, connect=link.connect, keys=str(file), **fields)
            for spec, link, file in zip(ring_specs(3, directory), links, files, strict=True)
        ]
        self.head = self.start("asking head", self.specs[0], "head")
        self.stages = [self.start("stage", spec, f"stage-{spec.stage}") for spec in self.specs]

    def start(self, role: str, spec: StageSpec, name: str) -> subprocess.Popen[bytes]:
        """One process, on its host; its output goes to the log of that name."""
        log = self.directory / f"{name}.log"
        return start_process(role, spec, log, lambda words: self.hosts.words(spec.stage, *words))

    def log_of(self, name: str) -> str:
        """The output of a process so far."""
        return (self.directory / f"{name}.log").read_text()

    def correct(self) -> int:
        """How many answers were correct so far."""
        numbers = re.findall(r"^right (\d+)$", self.log_of("head"), re.MULTILINE)
        return int(numbers[-1]) if numbers else 0

    def await_correct(self, more: int) -> None:
        """Wait for so many more correct answers."""
        wanted = self.correct() + more
        self.until(lambda: self.correct() >= wanted)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition while the head runs."""
        end = time.monotonic() + HANG_GUARD_S
        while not condition():
            assert self.head.poll() is None, self.log_of("head")[-2000:]
            assert time.monotonic() < end, self.log_of("head")[-2000:]
            time.sleep(0.02)

    def error_of(self, name: str, process: subprocess.Popen[bytes]) -> str:
        """The one error with which a process ends."""
        code = process.wait(HANG_GUARD_S)
        text = self.log_of(name)
        assert code == ExitCode.STAGE, text[-2000:]
        assert "Traceback" not in text
        return text[text.index("error: ") :]

    def close(self) -> None:
        """Kill what is left."""
        for process in (self.head, *self.stages):
            process.kill()
            process.wait()


@contextmanager
def far_ring(hosts: Network, directory: Path, **fields: object) -> Iterator[FarRing]:
    """A ring that has given correct answers; killed at the end, and the network is restored."""
    hosts.disturb()
    ring = FarRing(hosts, directory, **fields)
    try:
        ring.await_correct(2)
        yield ring
    finally:
        ring.close()
        hosts.disturb()


DISTURBANCES: dict[str, dict[str, float]] = {
    "1 ms": {"delay_ms": 1},
    "20 ms": {"delay_ms": 20},
    "80 ms": {"delay_ms": 80},
    "loss": {"delay_ms": 5, "loss": 1},
    "20 Mbit/s": {"rate_mbit": 20},
    "reordering": {"delay_ms": 10, "jitter_ms": 5, "reorder": 25},
    "duplicates and damage": {"delay_ms": 1, "duplicate": 2, "corrupt": 1},
}
CUT = {"loss": 100.0}


def test_a_disturbed_network_changes_no_byte_and_a_cut_of_five_seconds_none_either(
    hosts: Network, tmp_path: Path
) -> None:
    with far_ring(hosts, tmp_path) as ring:
        for disturbance in DISTURBANCES.values():
            with hosts.disturbed(**disturbance):
                ring.await_correct(6)
        with hosts.disturbed(hosts=[1], **CUT):
            time.sleep(5.0)
        ring.await_correct(3)
        ring.head.send_signal(signal.SIGTERM)


def test_a_stage_that_is_killed_on_another_host_is_named_by_all_the_others(hosts: Network, tmp_path: Path) -> None:
    with far_ring(hosts, tmp_path) as ring:
        ring.stages[1].kill()
        restarted = ring.start("stage", changed(ring.specs[1], start_timeout_s=2.0), "restarted")
        try:
            assert "has lost stage 1 at" in ring.error_of("head", ring.head)
            assert "has lost stage 1 at" in ring.error_of("stage-0", ring.stages[0])
            assert "has lost stage 1 at" in ring.error_of("stage-2", ring.stages[2])
            assert re.search(r"(waited|lost) .*stage 0|stage 0.*lost", ring.error_of("restarted", restarted))
        finally:
            restarted.kill()
            restarted.wait()


def test_a_host_that_is_cut_off_is_named_in_time_and_its_stage_ends(hosts: Network, tmp_path: Path) -> None:
    with far_ring(hosts, tmp_path, beat_timeout_s=3.0) as ring, hosts.disturbed(hosts=[1], **CUT):
        assert "stage 1 hangs" in ring.error_of("head", ring.head)
        for stage in range(3):
            ring.error_of(f"stage-{stage}", ring.stages[stage])


def test_a_stopped_stage_on_another_host_is_named_in_time(hosts: Network, tmp_path: Path) -> None:
    with far_ring(hosts, tmp_path, beat_timeout_s=3.0) as ring:
        ring.stages[2].send_signal(signal.SIGSTOP)
        assert "stage 2 hangs" in ring.error_of("head", ring.head)
        ring.stages[2].send_signal(signal.SIGCONT)
        for stage in range(3):
            ring.error_of(f"stage-{stage}", ring.stages[stage])


STRANGER = """
import socket, sys
listening = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
while True:
    connection, _ = listening.accept()
    connection.sendall(b"HTTP/1.1 400 Bad Request\\r\\n\\r\\n" * 100)
"""


def test_a_port_that_another_program_holds_ends_the_wait_with_its_address(hosts: Network, tmp_path: Path) -> None:
    links = plan_endpoints(3, PORT_BASE, hosts.addresses)
    address, port = hosts.addresses[1], PORT_BASE
    stranger = subprocess.Popen(
        hosts.words(1, sys.executable, "-c", STRANGER, address, str(port)), stdout=subprocess.PIPE
    )
    asked = {"bind": links[2].bind, "connect": links[2].connect, "insecure": True, "start_timeout_s": 1.5}
    spec = changed(ring_specs(3, tmp_path)[2], **asked)
    log = tmp_path / "stage-2.log"
    stage = start_process("stage", spec, log, lambda words: hosts.words(2, *words))
    try:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == b"listening\n"
        assert stage.wait(HANG_GUARD_S) == ExitCode.STAGE
        text = log.read_text()
        assert f"stage 2 has waited 1.5 s for the roll call from stage 1 at tcp://{address}:{port}" in text
        trouble = "the process at that address broke off the handshake, or speaks another protocol"
        assert f"tcp://{address}:{port}: {trouble}" in text
    finally:
        for process in (stage, stranger):
            process.kill()
            process.wait()


ASK = """
import json, sys, httpx
with httpx.Client(base_url=sys.argv[1], timeout=120, trust_env=False) as client:
    for _ in range(600):
        try:
            if client.get("/health").status_code == 200:
                break
        except httpx.TransportError:
            pass
        __import__("time").sleep(0.2)
    asked = {"temperature": 0, "max_tokens": 12, "prompt": ["one two", "three four five"]}
    print(json.dumps([choice["text"] for choice in client.post("/v1/completions", json=asked).json()["choices"]]))
"""


@pytest.mark.torch
def test_the_tokens_of_a_model_across_hosts_are_the_same_on_a_bad_network(
    hosts: Network, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("httpx")
    model = tiny_model("llama", layers=4, initializer_range=0.5)
    ends = [f"tcp://{address}:{PORT_BASE}" for address in hosts.addresses]
    files = write_key_files(generate(2), tmp_path / "keys")
    common = [str(model), "--engine", "transformers", "--total-stages", "2", "--port", "8000"]
    running = [
        start_stage(
            hosts, stage, tmp_path, *common,
            "--bind", ends[stage], "--connect", ends[1 - stage], "--keys", str(files[stage]),
        )
        for stage in range(2)
    ]  # fmt: skip
    try:
        first = ask(hosts)
        with hosts.disturbed(delay_ms=20, jitter_ms=5, loss=1):
            second = ask(hosts)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)
    assert first == second
    assert all(first)


def start_stage(hosts: Network, stage: int, logs: Path, *words: str) -> subprocess.Popen[bytes]:
    """`zpptool run-stage` on that stage's host."""
    command = [sys.executable, "-m", "zpptool", "run-stage", *words, "--stage-idx", str(stage)]
    with (logs / f"stage-{stage}.log").open("wb") as output:
        return subprocess.Popen(hosts.words(stage, *command), stdout=output, stderr=subprocess.STDOUT)


def ask(hosts: Network) -> list[str]:
    """Two greedy completions, requested on the head's host."""
    words = hosts.words(0, sys.executable, "-c", ASK, "http://127.0.0.1:8000")
    texts: list[str] = json.loads(subprocess.run(words, check=True, capture_output=True, timeout=100).stdout)
    return texts
