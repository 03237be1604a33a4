# SPDX-License-Identifier: Apache-2.0
"""What `server_tests.py` has a pytest process do, as a file of JSON that both read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

JOB_VARIABLE = "ZPP_SERVER_TESTS"


@dataclass(frozen=True)
class Job:
    """One run of pytest.

    Attributes:
        collect_to: only write the tests that ask a server here, by file; empty to run tests.
        side: what is asked, in the records.
        url: the server's address.
        pid: its process.
        offers: the arguments that it was started with.
        tests: the ids to run, in order.
        results: the file of the records.
        version: of vLLM, in the records.
        is_disturbed: whether its stages are killed meanwhile.
    """

    collect_to: str = ""
    side: str = ""
    url: str = ""
    pid: int = 0
    offers: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)
    results: str = ""
    version: str = ""
    is_disturbed: bool = False


def write_job(path: Path, job: Job) -> None:
    """For the process that is started next."""
    path.write_text(json.dumps(asdict(job)))


def read_job(path: Path) -> Job:
    """In that process."""
    return Job(**json.loads(path.read_text()))


def write_collected(path: Path, tests: dict[str, list[str]]) -> None:
    """The tests that ask a server, by file."""
    path.write_text(json.dumps(tests, indent=1))


def read_collected(path: Path) -> dict[str, list[str]]:
    """What was collected."""
    return dict(json.loads(path.read_text()))
