# SPDX-License-Identifier: Apache-2.0
"""`zpptool deploy` as a user runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint
from commands import typed_here
from conftest import Ran


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    return typed_here(monkeypatch, capsys)


@pytest.fixture
def plan(tmp_path: Path, run: Callable[..., Ran]) -> Path:
    write_checkpoint(tmp_path / "model", llama(), llama_config())
    made = run("plan", tmp_path / "model", "--num-stages", 2, "--hosts", "a,b", "-o", tmp_path / "zpp.yaml")
    assert made.code == 0, made.err
    return tmp_path / "zpp.yaml"


@pytest.mark.parametrize("target", ["kubernetes", "lws", "helm", "compose", "systemd"])
def test_files_are_written_once_and_replaced_with_force(
    target: str, plan: Path, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    out = tmp_path / "out"
    words = ["deploy", target, "--plan", plan, "-o", out, "--json"]
    words += ["--model", f"hf://org/name@{'0123' * 10}"] if target in ("kubernetes", "lws", "helm") else []
    first = run(*words)
    assert first.code == 0, first.err
    before = {name: (out / name).read_bytes() for name in first.json["files"]}
    assert before
    assert run(*words).code == 3
    assert run(*words, "--force").code == 0
    assert {name: (out / name).read_bytes() for name in first.json["files"]} == before


def test_the_next_steps_are_shown(plan: Path, tmp_path: Path, run: Callable[..., Ran]) -> None:
    shown = run("deploy", "compose", "--plan", plan, "-o", tmp_path / "out").out
    assert "key files of 2 stages" in shown
    assert "docker compose -f" in shown
    shown = run("deploy", "compose", "--plan", plan, "-o", tmp_path / "other", "--insecure").out
    assert "key files" not in shown
    assert "ZPP_KEYS" not in (tmp_path / "other/compose.yaml").read_text()


def test_a_plan_that_cannot_work_is_not_deployed(plan: Path, tmp_path: Path, run: Callable[..., Ran]) -> None:
    plan.write_text(plan.read_text().replace("layers: 2-4", "layers: 3-4"))
    assert run("deploy", "compose", "--plan", plan, "-o", tmp_path / "out").code == 3
    assert not (tmp_path / "out").exists()


def test_settings_of_the_command_line_go_before_those_of_the_file(
    plan: Path, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    (tmp_path / "values.yaml").write_text("nodeSelector: {pool: a, zone: z}\nstorageClassName: slow\n")
    words = ["deploy", "kubernetes", "--plan", plan, "--model", f"hf://org/name@{'0123' * 10}", "-o", tmp_path / "out"]
    words += ["--values", tmp_path / "values.yaml", "--node-selector", "pool=b", "--storage-class", "fast"]
    assert run(*words).code == 0
    text = (tmp_path / "out/stage-1.yaml").read_text()
    assert "pool: b" in text
    assert "zone: z" in text
    assert "storageClassName: fast" in text


def test_settings_of_a_cluster_are_refused_where_there_is_none(
    plan: Path, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    refused = run("deploy", "compose", "--plan", plan, "-o", tmp_path / "out", "--storage-class", "fast")
    assert refused.code == 2
    assert "--storage-class is for Kubernetes" in refused.err
    unknown = run("deploy", "helm", "--plan", plan, "-o", tmp_path / "out", "--node-selector", "pool")
    assert unknown.code == 2
    assert "not KEY=VALUE" in unknown.err
