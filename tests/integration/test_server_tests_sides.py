# SPDX-License-Identifier: Apache-2.0
"""A side of `scripts/server_tests.py` as the script starts it: the embedded engine, one of whose stages is killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

pytest.importorskip("transformers")
pytest.importorskip("httpx")

import httpx

sys.path.insert(0, str(ROOT / "scripts"))

from servertests.groups import Group
from servertests.sides import EMBEDDED, kill_now_and_then, start

pytestmark = [pytest.mark.torch, pytest.mark.timeout(400)]

BACK_S = 120


def test_a_server_answers_also_after_a_stage_is_killed_and_leaves_nothing(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    group = Group("g", (), served_name="organisation/name", api_key="key")
    server = start(EMBEDDED, group, tiny_model("llama"), tmp_path / "no-adapter", tmp_path / "log")
    try:
        server.wait_until_ready()
        before = server.stage_processes()
        assert sorted(before) == [0, 1]
        waits = iter([False, True])
        assert kill_now_and_then(server, 1, lambda seconds: next(waits)) == 1
        psutil.wait_procs([before[0]], timeout=10)
        body = {"model": "organisation/name", "prompt": "a", "max_tokens": 2}
        asked = {"headers": {"Authorization": "Bearer key"}, "json": body, "timeout": BACK_S}
        answer = httpx.post(f"{server.url}/v1/completions", **asked)
        assert answer.status_code == 200, answer.text
        after = server.stage_processes()
        assert after[0].pid != before[0].pid
        assert after[1].pid == before[1].pid
        started = psutil.Process(server.process.pid).children(recursive=True)
    finally:
        server.stop()
    assert not server.is_running()
    time.sleep(0.1)
    assert not [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
