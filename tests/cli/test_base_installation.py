# SPDX-License-Identifier: Apache-2.0
"""`pip install zpptool` without an extra is enough to split, validate, plan and deploy.

The test environment has every extra. So commands run here in a process that can import only the packages which pip
installs for the dependencies in pyproject.toml, and for those packages' own dependencies.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
RUN = """
import shlex, sys

class Refusing:
    def find_spec(self, name, path, target=None):
        if name in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

refused = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Refusing())
import zpptool.doctor.checks  # not run: it imports the engine in a process that sees every package
from zpptool.cli.app import main

for line in sys.argv[2:]:
    sys.argv = ["zpptool", *shlex.split(line)]
    try:
        main()
    except SystemExit as ended:
        print("exit", ended.code, line)
"""
"""Runs `zpptool` with each line of the later arguments, with the packages of the first argument hidden."""


def base_distributions() -> set[str]:
    """The packages that an installation without extras has, by their normalised names."""
    base = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    pending = [Requirement(text) for text in base]
    found: dict[str, set[str]] = {}  # with the extras that were asked for
    while pending:
        wanted = pending.pop()
        name, extras = canonicalize_name(wanted.name), {"", *wanted.extras}
        new = extras - found.setdefault(name, set())
        found[name] |= new
        try:
            own = [Requirement(text) for text in (requires(name) or [])] if new else []
        except PackageNotFoundError:  # not needed on this platform
            continue
        pending += [each for each in own if not each.marker or any(each.marker.evaluate({"extra": e}) for e in new)]
    return set(found)


@cache
def hidden_packages() -> set[str]:
    """The importable top-level names that only extras install."""
    base = base_distributions() | {"zpptool", "pip", "setuptools"}
    return {
        name
        for name, distributions in packages_distributions().items()
        if not {canonicalize_name(each) for each in distributions} & base and name.isidentifier()
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("base")
    write_checkpoint(made / "MODEL", llama(), llama_config())
    return made


def run(directory: Path, hidden: set[str], *lines: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, ",".join(sorted(hidden)), *lines]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=False)


def test_what_no_dependency_installs_is_hidden() -> None:
    assert {"pytest", "hypothesis"} <= hidden_packages()
    assert not {"typer", "rich", "pydantic", "zmq", "yaml"} & hidden_packages()


def test_the_base_installation_splits_validates_plans_and_joins(directory: Path) -> None:
    lines = (
        "split MODEL --num-stages 2 --output-dir stages",
        "validate stages --model MODEL",
        "plan MODEL --num-stages 2 -o zpp.yaml",
        "deploy systemd --plan zpp.yaml -o units",
        "join stages --output-dir whole",
        "cache list",
    )
    ran = run(directory, hidden_packages(), *lines)
    assert "Traceback" not in ran.stderr, ran.stderr
    for line in lines:
        assert f"exit 0 {line}" in ran.stdout, ran.stdout + ran.stderr


def test_a_command_that_needs_an_extra_says_which(directory: Path) -> None:
    hidden = hidden_packages() | {"vllm", "httpx", "uvicorn", "starlette"}
    line = "serve MODEL --num-stages 2"
    served = run(directory, hidden, line)
    assert f"exit 2 {line}" in served.stdout
    assert "pip install 'zpptool[" in served.stderr
