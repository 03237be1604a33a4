# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of a group: starts its server, runs pytest, and starts the server again if a test was its end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from servertests import results, sides
from servertests.groups import Group
from servertests.job import JOB_VARIABLE, Job, read_collected, write_job
from servertests.results import ERROR, Result
from servertests.selection import remaining

SCRIPTS = Path(__file__).parent.parent
PLUGIN = "servertests.plugin"
ROOT = "tests/entrypoints"


@dataclass(frozen=True)
class Setting:
    """What all runs share.

    Attributes:
        tree: vLLM's source tree.
        packages: what its tests import besides, for PYTHONPATH.
        hub: the cache of the hub.
        adapter: the adapter in it.
        model: the checkpoint.
        records: the file of the results.
        logs: where servers and pytest print.
        version: of vLLM.
        limit_s: seconds that a test may take.
        kill_every_s: seconds between two stages that are killed; 0 for none.
        again: outcomes that are tried again.
    """

    tree: Path
    packages: Path
    hub: Path
    adapter: Path
    model: Path
    records: Path
    logs: Path
    version: str
    limit_s: int
    kill_every_s: float = 0
    again: tuple[str, ...] = ()

    def label(self, side: str) -> str:
        """The side's name in the records."""
        return f"{side}, killed" if self.kill_every_s else side


def collect(setting: Setting, paths: Iterable[str]) -> dict[str, list[str]]:
    """The tests that ask a server, by file."""
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "collected.json"
        done = run_pytest(setting, Job(collect_to=str(found)), list(paths), Path(scratch), ["--collect-only", "-q"])
        if done.returncode or not found.exists():
            raise SystemExit(f"the tests could not be collected:\n{done.stdout.decode(errors='replace')[-3000:]}")
        return read_collected(found)


def run_group(setting: Setting, side: str, group: Group, tests: Sequence[str]) -> None:
    """Run the tests of a group that have no result yet on a side."""
    label, again, first = setting.label(side), setting.again, True
    while left := remaining(tests, results.latest(results.read(setting.records), label), again if first else ()):
        before = len(results.read(setting.records))
        log = setting.logs / f"{label}-{group.name}.log".replace(" ", "-")
        server = sides.start(side, group, setting.model, setting.adapter, log)
        try:
            server.wait_until_ready()
            with _disturbance(server, setting.kill_every_s):
                job = Job(
                    side=label, url=server.url, pid=server.process.pid, offers=group.offers(), tests=left,
                    results=str(setting.records), version=setting.version, is_disturbed=bool(setting.kill_every_s),
                )  # fmt: skip
                paths = list(dict.fromkeys(test.partition("::")[0] for test in left))
                done = run_pytest(setting, job, paths, setting.logs, ["--timeout", str(setting.limit_s)])
        except SystemExit as cause:
            _give_up(setting, label, left, str(cause))
            return
        finally:
            server.stop()
        output = log.with_suffix(".pytest")
        output.write_bytes(done.stdout)
        if len(results.read(setting.records)) == before:
            _give_up(setting, label, left[:1], f"pytest ended with {done.returncode}; its output is {output.name}")
        first = False


class _disturbance:
    """Kills a stage now and then while it is entered."""

    def __init__(self, server: sides.Server, every_s: float) -> None:
        self._over = threading.Event()
        words = (server, every_s, self._over.wait)
        self._thread = threading.Thread(target=sides.kill_now_and_then, args=words) if every_s else None

    def __enter__(self) -> None:
        if self._thread:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()


def _give_up(setting: Setting, label: str, tests: Sequence[str], reason: str) -> None:
    for test in tests:
        results.append(setting.records, Result(label, test, ERROR, 0, reason, setting.version))


def run_pytest(
    setting: Setting, job: Job, paths: Sequence[str], scratch: Path, words: Sequence[str]
) -> subprocess.CompletedProcess[bytes]:
    """Run pytest with our plugin on files of vLLM's tree; `words` are more of its arguments."""
    file = scratch / f"job-{os.getpid()}.json"
    write_job(file, job)
    path = [str(setting.tree), str(SCRIPTS), str(setting.packages), os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), JOB_VARIABLE: str(file), "VLLM_PLUGINS": "",
        "HF_HOME": str(setting.hub), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "pytest", "-c", "pytest.ini", "--confcutdir", ROOT, "-p", PLUGIN,
        "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout-method", "signal", "-rfE", "--tb", "short", *words,
    ]  # fmt: skip
    return subprocess.run(
        [*command, *(f"{ROOT}/{path}" for path in paths)],
        cwd=setting.tree, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
