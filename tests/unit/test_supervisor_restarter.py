# SPDX-License-Identifier: Apache-2.0
"""Real processes of a group that are restarted alone."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from zpptool.process.group import ProcessGroup
from zpptool.process.progress import LOADED
from zpptool.supervisor.restarter import Restarter

pytestmark = pytest.mark.timeout(60)

SLEEP = "import time; time.sleep(60)"


def test_only_the_process_that_was_killed_is_restarted_and_its_log_is_appended_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ProcessGroup() as group:
        for name in ("stage 0", "head"):
            group.start(name, [sys.executable, "-uc", f"print('up'); {SLEEP}"], {}, tmp_path / f"{name}.log")
        other, killed = (child.popen.pid for child in group.children)
        restarter = Restarter(group, tmp_path)
        assert not restarter.poll()
        log = tmp_path / "head.log"
        end = time.monotonic() + 30
        while log.read_text() != "up\n":
            assert time.monotonic() < end
            time.sleep(0.02)
        group.children[1].popen.kill()
        while {child.popen.pid for child in group.children} == {other, killed}:
            assert not restarter.poll()
            assert time.monotonic() < end
            time.sleep(0.02)
        assert other in {child.popen.pid for child in group.children}
        records = [(record.levelname, record.message) for record in caplog.records]
        assert records == [("WARNING", "head was killed by SIGKILL; it is started again")]
        while log.read_text() != "up\nup\n":
            assert time.monotonic() < end
            time.sleep(0.02)
        group.children[0].popen.terminate()
        group.children[0].popen.wait()


def test_all_are_loaded_when_each_has_reported_it_and_none_has_ended(tmp_path: Path) -> None:
    with ProcessGroup() as group:
        for name in ("stage 0", "head"):
            group.start(name, [sys.executable, "-c", SLEEP], {}, tmp_path / f"{name}.log")
        restarter = Restarter(group, tmp_path)
        (tmp_path / "stage-0").write_text(LOADED)
        assert not restarter.all_loaded()
        (tmp_path / "head").write_text(LOADED)
        assert restarter.all_loaded()
        group.children[1].popen.kill()
        group.children[1].popen.wait()
        assert not restarter.all_loaded()
