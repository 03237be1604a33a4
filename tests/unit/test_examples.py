# SPDX-License-Identifier: Apache-2.0
"""The examples of deployment are what `zpptool deploy` makes of their plan now; scripts and programs parse."""

from __future__ import annotations

import py_compile
import shutil
import subprocess
from pathlib import Path

import pytest
from manifests import check, objects

from zpptool.config.plan import load_plan_file
from zpptool.deploy.compose import compose_files
from zpptool.deploy.deployment import Deployment, Device, check_deployment
from zpptool.deploy.kubernetes.leader_worker_set import lws_files

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = [*sorted(EXAMPLES.glob("slurm/*"))]


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    return check_deployment(
        Deployment(
            plan=load_plan_file(EXAMPLES / "deploy/zpp.yaml"),
            name="zpp",
            image="zpptool:cpu",
            source="hf://HuggingFaceTB/SmolLM2-135M-Instruct@main",
            device=Device.CPU,
        )
    )


def test_the_deployments_are_what_deploy_makes_of_the_plan(deployment: Deployment) -> None:
    for folder, made in (("compose", compose_files(deployment)), ("lws", lws_files(deployment))):
        there = {path.name: path.read_text() for path in (EXAMPLES / "deploy" / folder).glob("*.yaml")}
        assert there == made, f"run zpptool deploy {folder} --force again, as docs/deployment.md says"


def test_the_manifests_are_valid() -> None:
    for path in (EXAMPLES / "deploy/lws").glob("*.yaml"):
        for item in objects(path.read_text()):
            check(item)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_well_formed(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=10, check=False)
    assert checked.returncode == 0, checked.stderr
    if shutil.which("shellcheck"):
        linted = subprocess.run(["shellcheck", script], capture_output=True, text=True, timeout=30, check=False)
        assert linted.returncode == 0, linted.stdout


def test_the_programs_compile(tmp_path: Path) -> None:
    for path in EXAMPLES.glob("*.py"):
        py_compile.compile(str(path), cfile=str(tmp_path / "compiled"), doraise=True)


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in listed or path.name == "README.md"
