# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin that lets vLLM's tests ask a server that runs already, and writes down what came of each.

`pytest -p servertests.plugin`, in vLLM's source tree, with the path of a job (`servertests.job`) in ZPP_SERVER_TESTS.
The class `RemoteOpenAIServer` of vLLM's `tests.utils`, which starts a server, is replaced by a client of ours.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import tests.utils

from servertests import results
from servertests.groups import HUB_NAMES, MODEL_NAME
from servertests.job import JOB_VARIABLE, Job, read_job, write_collected
from servertests.results import Result
from servertests.selection import renamed, unmet, uses_a_server

ROOT = "tests/entrypoints/"
UNMET = "the server lacks "
MENDED_S = 180
SERVER_GONE = 7
"""pytest's exit code when the server has ended."""

job: Job = read_job(Path(os.environ[JOB_VARIABLE]))


class RunningServer(tests.utils.RemoteOpenAIServer):  # type: ignore[misc]
    """The server of this run, with the methods of the class that starts one."""

    def __init__(self, model: str, vllm_serve_args: list[str], *, env_dict: Any = None, **_options: Any) -> None:
        missing = unmet(vllm_serve_args, job.offers)
        if missing:
            pytest.skip(UNMET + ", ".join(missing))
        self.host, port = job.url.removeprefix("http://").split(":")
        self.port = int(port)
        self.uds = None
        self.show_hidden_metrics = False

    def _shutdown(self) -> None:
        """It is not this class that ends it."""


tests.utils.RemoteOpenAIServer = RunningServer


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the job, and give them the name of the model that runs."""
    if job.collect_to:
        modules = {name: sorted(_ids_that_ask(items, name)) for name in {_path(item) for item in items}}
        write_collected(Path(job.collect_to), modules)
        return
    wanted = {test: place for place, test in enumerate(job.tests)}
    config.hook.pytest_deselected(items=[item for item in items if _id(item) not in wanted])
    items[:] = sorted((item for item in items if _id(item) in wanted), key=lambda item: wanted[_id(item)])
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        _rename_in(module)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            params = item.callspec.params
            params.update({name: renamed(value, HUB_NAMES, MODEL_NAME) for name, value in params.items()})


def pytest_runtest_setup() -> None:
    """No test is asked of a server that has ended, nor, unless stages are killed on purpose, of one that recovers."""
    deadline = time.monotonic() + (0 if job.is_disturbed else MENDED_S)
    while _is_running():
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{job.url}/health", timeout=10):
            return
        if time.monotonic() >= deadline:
            return
        time.sleep(0.5)
    pytest.exit("the server has ended", returncode=SERVER_GONE)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Put the outcome of a test down when its last part is over."""
    report: pytest.TestReport = (yield).get_result()  # type: ignore[misc]
    reports = item.stash.setdefault(_REPORTS, [])
    reports.append(report)
    if report.when == "teardown":
        outcome, reason = _judge(reports)
        if outcome not in (results.PASSED, results.SKIPPED) and not _is_running():
            reason = f"the server has ended: {reason}"
        seconds = round(sum(one.duration for one in reports), 1)
        results.append(Path(job.results), Result(job.side, _id(item), outcome, seconds, reason[:600], job.version))


_REPORTS: pytest.StashKey[list[pytest.TestReport]] = pytest.StashKey()


def _judge(reports: list[pytest.TestReport]) -> tuple[str, str]:
    """The outcome of a test and the reason, from the reports of its parts."""
    for report in reports:
        if report.skipped:
            reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
            reason = reason.removeprefix("Skipped: ")
            return (results.UNMET if reason.startswith(UNMET) else results.SKIPPED), reason
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message if crash else str(report.longrepr)
            if "Timeout (>" in reason:
                return results.TIMEOUT, reason.splitlines()[0]
            return (results.FAILED if report.when == "call" else results.ERROR), reason
    return results.PASSED, ""


def _is_running() -> bool:
    try:
        return psutil.Process(job.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _rename_in(module: types.ModuleType) -> None:
    """Replace the names of models in the constants of a module, and of the conftest modules beside it."""
    beside = [one for name, one in sys.modules.items() if name == f"{module.__package__}.conftest"]
    for one in (module, *beside):
        for name, value in list(vars(one).items()):
            if name.isupper() and isinstance(value, (str, list, tuple, dict)):
                setattr(one, name, renamed(value, HUB_NAMES, MODEL_NAME))


def _ids_that_ask(items: list[pytest.Item], path: str) -> Iterator[str]:
    for item in items:
        if _path(item) != path or not isinstance(item, pytest.Function):
            continue
        if uses_a_server(item.fixturenames, inspect.getsource(item.function)):
            yield _id(item)


def _id(item: pytest.Item) -> str:
    return item.nodeid.removeprefix(ROOT)


def _path(item: pytest.Item) -> str:
    return _id(item).partition("::")[0]
