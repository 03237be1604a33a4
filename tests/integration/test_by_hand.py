# SPDX-License-Identifier: Apache-2.0
"""Machines that share only a network: each is a network namespace that runs the commands that `zpptool plan` prints.

The host names are in a hosts file, as on machines that resolve each other by name.
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

    def inside(self, *argv: str) -> list[str]:
        """A command line that runs there, with a hosts file of its own."""
        mounted = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "-m", "sh", "-c", mounted, str(hosts_file()), *argv]


def hosts_file() -> Path:
    return Path(os.environ["ZPP_TEST_HOSTS"])


def ip(*args: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *args], capture_output=True, text=True, timeout=30, check=False)
    assert not check or done.returncode == 0, f"ip {' '.join(args)}: {done.stderr}"
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
    program, *args = shlex.split(line)
    assert program == "zpptool"
    with (directory / f"{machine.host}.log").open("wb") as log:
        process = subprocess.Popen(
            machine.inside(sys.executable, "-m", "zpptool", *args),
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


def request(machine: Machine, url: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with a client of the API on a machine."""
    argv = machine.inside(sys.executable, "-c", ASK + script, url)
    return subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)


def test_the_printed_commands_of_each_host_run_there(
    machines: list[Machine], tmp_path: Path, tiny_model: Callable[..., Path], zpptool: Callable[..., Ran]
) -> None:
    """Hosts by name and by address; the last machine is a client, and connects to the ports of the links too."""
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
    hosts_of_plan = made.json["hosts"]
    assert [host["host"] for host in hosts_of_plan] == hosts.split(",")
    assert all(len(host["commands"]) == 1 for host in hosts_of_plan)
    url = f"http://{first.host}:8000"
    with (
        running(second, hosts_of_plan[1]["commands"][0], tmp_path) as stage_1,
        running(first, hosts_of_plan[0]["commands"][0], tmp_path) as stage_0,
    ):
        deadline = time.monotonic() + READY_S
        while request(client, url, "ask('/health')").returncode != 0:
            logs = "\n".join(log.read_text(errors="replace")[-2000:] for log in tmp_path.glob("*.log"))
            assert stage_0.poll() is None, logs
            assert stage_1.poll() is None, logs
            assert time.monotonic() < deadline, logs
            time.sleep(0.5)
        connect = (
            "import socket\nfor host, port in "
            + repr([(host["host"], rule["port"]) for host in hosts_of_plan for rule in host["open"]])
            + ":\n    socket.create_connection((host, port), timeout=10).close()\n"
        )
        connected = request(client, url, connect)
        assert connected.returncode == 0, connected.stderr
        answer = request(client, url, "print(ask('/v1/completions', {'prompt': 'abc', 'max_tokens': 4}).decode())")
        assert answer.returncode == 0, answer.stderr
        assert '"completion_tokens":4' in answer.stdout.replace(" ", "")


def test_the_doctor_of_a_machine_reports_its_busy_port(
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
        "from zpptool.doctor.check_network import check_peers, check_ports\n"
        "from zpptool.doctor.target import make_target\n"
        "from zpptool.config.plan import Engine\n"
        f"target = make_target({str(tmp_path / 'zpp.yaml')!r}, engine=Engine.VLLM, num_stages=None, base_port=1,"
        " api_port=1, hosts=None, host=None, keys=None)\n"
        "print(target.here, *(f'{item.check}:{item.level}' for check in (check_ports, check_peers)"
        " for item in check(target)))\n"
    )

    def examine(machine: Machine) -> str:
        argv = machine.inside(sys.executable, "-c", script)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert examine(second) == "(1,) ports:ok stage 0:warning"
    serve = (
        f"import socket\nserver = socket.create_server(({first.address!r}, 15550))\nprint('up', flush=True)\n"
        "server.accept()[0].recv(1)\n"
    )
    server = subprocess.Popen(first.inside(sys.executable, "-c", serve), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        assert examine(first) == "(0,) ports:blocker stage 1:warning"
        assert examine(second) == "(1,) ports:ok stage 0:ok"
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
