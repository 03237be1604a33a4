# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin of `scripts/server_tests.py`, in a tree laid out like vLLM's, against a real HTTP server."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from servertests.groups import MODEL_NAME
from servertests.job import Job
from servertests.results import latest, read
from servertests.run import Setting, collect, run_pytest

UTILS = """
class RemoteOpenAIServer:
    def __init__(self, model, args, **options):
        raise RuntimeError("this would start a server")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._shutdown()

    def url_for(self, path):
        return f"http://{self.host}:{self.port}/{path}"
"""

TESTS = """
import time
import urllib.request

import pytest

from tests.utils import RemoteOpenAIServer

MODEL_NAME = "Qwen/Qwen3-0.6B"


@pytest.fixture(scope="module")
def server(request):
    with RemoteOpenAIServer(MODEL_NAME, ["--dtype", "half", *getattr(request, "param", [])]) as server:
        yield server


def test_answer(server):
    with urllib.request.urlopen(server.url_for(MODEL_NAME)) as answer:
        assert answer.read().decode() == "/HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize("model_name", [MODEL_NAME])
def test_name(server, model_name):
    assert model_name == "a name"


@pytest.mark.parametrize("server", [["--enable-magic"]], indirect=True)
def test_argument(server):
    assert server


def test_hang(server):
    time.sleep(60)


def test_skipped(server):
    pytest.skip("not here")


def test_nothing_asked():
    assert True
"""


class Echo(BaseHTTPRequestHandler):
    """Answers with the path that it is asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    tree = tmp_path / "tree"
    folder = tree / "tests/entrypoints/openai"
    folder.mkdir(parents=True)
    for directory in (folder, folder.parent, folder.parents[1]):
        (directory / "__init__.py").touch()
    (tree / "tests/utils.py").write_text(UTILS)
    (folder / "test_it.py").write_text(TESTS)
    (tree / "pytest.ini").write_text("[pytest]\n")
    none = tmp_path / "none"
    return Setting(tree, none, none, none, none, tmp_path / "results.jsonl", tmp_path, "9.9", limit_s=3)


def test_tests_ask_the_running_server_and_each_outcome_is_recorded(setting: Setting, url: str) -> None:
    tests = collect(setting, ["openai/test_it.py"])["openai/test_it.py"]
    assert len(tests) == 5, "the one that asks nothing is left out"
    job = Job(side="s", url=url, pid=os.getpid(), tests=tests, results=str(setting.records), version="9.9")
    done = run_pytest(setting, job, ["openai/test_it.py"], setting.logs, ["--timeout", "3"])
    assert done.returncode == 1, done.stdout.decode()
    found = {test.partition("::")[2].partition("[")[0]: one for test, one in latest(read(setting.records), "s").items()}
    outcomes = {name: one.outcome for name, one in found.items()}
    assert outcomes == {
        "test_answer": "passed", "test_name": "failed", "test_argument": "unmet", "test_hang": "timeout",
        "test_skipped": "skipped",
    }  # fmt: skip
    assert MODEL_NAME in found["test_name"].reason
    assert found["test_argument"].reason == "the server lacks --enable-magic"
    assert found["test_skipped"].reason == "not here"


def test_no_test_is_run_when_the_server_has_ended(setting: Setting, url: str) -> None:
    tests = collect(setting, ["openai/test_it.py"])["openai/test_it.py"]
    job = Job(side="s", url=url, pid=2**22 + 1, tests=tests, results=str(setting.records), version="9.9")
    done = run_pytest(setting, job, ["openai/test_it.py"], setting.logs, [])
    assert done.returncode == 7, done.stdout.decode()
    assert b"the server has ended" in done.stdout
    assert read(setting.records) == []
