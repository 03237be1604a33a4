# SPDX-License-Identifier: Apache-2.0
"""Machines that share nothing but a wire: each a network namespace of its own, running what `zpptool plan` printed.

The names of the hosts are those of a hosts file, as on machines that know each other by name.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Ran

pytestmark = [pytest.mark.torch, pytest.mark.timeout(400)]
READY_S = 240
ASK = """
import json, sys, urllib.request
def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(sys.argv[1] + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()
"""


@dataclass(frozen=True)
class Machine:
    """A network namespace with an address on a bridge that joins all of them."""

    name: str
    host: str
    address: str

    def inside(self, *words: str) -> list[str]:
        """A command line that runs there, with a hosts file of its own."""
        mounted = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "-m", "sh", "-c", mounted, str(hosts_file()), *words]


def hosts_file() -> Path:
    return Path(os.environ["ZPP_TEST_HOSTS"])


def ip(*words: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30, check=False)
    assert not check or done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.returncode == 0


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Machine]]:
    """Three machines on one bridge; skipped where namespaces cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    tag = f"z{os.getpid() % 100000}"
    wire = f"{tag}w"
    if not ip("netns", "add", wire, check=False):
        pytest.skip("this kernel, or this container, makes no network namespaces")
    made = [Machine(f"{tag}{place}", f"node-{place}", f"10.213.7.{place + 1}") for place in range(3)]
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{one.address} {one.host}\n" for one in made))
    monkeypatch.setenv("ZPP_TEST_HOSTS", str(hosts))
    try:
        if not ip("-n", wire, "link", "add", "bridge", "type", "bridge", check=False):
            pytest.skip("this kernel has no bridges")
        ip("-n", wire, "link", "set", "bridge", "up")
        for place, one in enumerate(made):
            ip("netns", "add", one.name)
            ip("-n", wire, "link", "add", f"p{place}", "type", "veth", "peer", "name", "eth", "netns", one.name)
            ip("-n", wire, "link", "set", f"p{place}", "master", "bridge", "up")
            ip("-n", one.name, "address", "add", f"{one.address}/24", "dev", "eth")
            ip("-n", one.name, "link", "set", "eth", "up")
            ip("-n", one.name, "link", "set", "lo", "up")
        yield made
    finally:
        for name in (wire, *(one.name for one in made)):
            ip("netns", "delete", name, check=False)


@contextmanager
def running(machine: Machine, line: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A printed command line, run on its machine in the directory of the plan."""
    program, *words = shlex.split(line)
    assert program == "zpptool"
    with (directory / f"{machine.host}.log").open("wb") as log:
        process = subprocess.Popen(
            machine.inside(sys.executable, "-m", "zpptool", *words),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def asked(machine: Machine, url: str, script: str) -> subprocess.CompletedProcess[str]:
    """What a client on a machine gets from the API."""
    words = machine.inside(sys.executable, "-c", ASK + script, url)
    return subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)


def test_what_is_printed_for_each_host_is_what_runs_there(
    machines: list[Machine], tmp_path: Path, tiny_model: Callable[..., Path], zpptool: Callable[..., Ran]
) -> None:
    """Hosts by name and by address; the last machine is a client, and a stranger who knocks at a link's port."""
    first, second, client = machines
    shutil.copytree(tiny_model("llama", layers=4), tmp_path / "model")
    hosts = f"{first.host},{second.address}"
    made = zpptool(
        "plan", tmp_path / "model", "--num-stages", 2, "--hosts", hosts, "--engine", "transformers",
        "-o", tmp_path / "zpp.yaml", "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    keys = zpptool("keys", "generate", "--num-stages", 2, "-o", tmp_path / "keys")
    assert keys.code == 0, keys.err
    orders = made.json["hosts"]
    assert [order["host"] for order in orders] == hosts.split(",")
    assert all(len(order["commands"]) == 1 for order in orders)
    url = f"http://{first.host}:8000"
    with (
        running(second, orders[1]["commands"][0], tmp_path) as stage_1,
        running(first, orders[0]["commands"][0], tmp_path) as stage_0,
    ):
        deadline = time.monotonic() + READY_S
        while asked(client, url, "ask('/health')").returncode != 0:
            logs = "\n".join(log.read_text(errors="replace")[-2000:] for log in tmp_path.glob("*.log"))
            assert stage_0.poll() is None, logs
            assert stage_1.poll() is None, logs
            assert time.monotonic() < deadline, logs
            time.sleep(0.5)
        knock = (
            "import socket\nfor host, port in "
            + repr([(order["host"], rule["port"]) for order in orders for rule in order["open"]])
            + ":\n    socket.create_connection((host, port), timeout=10).close()\n"
        )
        knocked = asked(client, url, knock)
        assert knocked.returncode == 0, knocked.stderr
        answer = asked(client, url, "print(ask('/v1/completions', {'prompt': 'abc', 'max_tokens': 4}).decode())")
        assert answer.returncode == 0, answer.stderr
        assert '"completion_tokens":4' in answer.stdout.replace(" ", "")


def test_a_busy_port_is_told_by_the_doctor_of_that_machine(
    machines: list[Machine], tmp_path: Path, tiny_model: Callable[..., Path], zpptool: Callable[..., Ran]
) -> None:
    first, second, _client = machines
    made = zpptool(
        "plan", tiny_model("llama", layers=4), "--num-stages", 2, "--hosts", f"{first.host},{second.host}",
        "--engine", "transformers", "-o", tmp_path / "zpp.yaml",
    )  # fmt: skip
    assert made.code == 0, made.err
    script = (
        "from pathlib import Path\n"
        "from zpptool.doctor.network import check_peers, check_ports\n"
        "from zpptool.doctor.target import make_patient\n"
        "from zpptool.config.plan import Engine\n"
        f"patient = make_patient({str(tmp_path / 'zpp.yaml')!r}, engine=Engine.VLLM, num_stages=None, base_port=1,"
        " api_port=1, hosts=None, host=None, keys=None)\n"
        "print(patient.here, *(f'{item.check}:{item.level}' for check in (check_ports, check_peers)"
        " for item in check(patient)))\n"
    )

    def examined(machine: Machine) -> str:
        words = machine.inside(sys.executable, "-c", script)
        done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert examined(second) == "(1,) ports:ok stage 0:warning"
    serve = (
        f"import socket\nserver = socket.create_server(({first.address!r}, 15550))\nprint('up', flush=True)\n"
        "server.accept()[0].recv(1)\n"
    )
    server = subprocess.Popen(first.inside(sys.executable, "-c", serve), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        assert examined(first) == "(0,) ports:blocker stage 1:warning"
        assert examined(second) == "(1,) ports:ok stage 0:ok"
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
