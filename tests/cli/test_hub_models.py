# SPDX-License-Identifier: Apache-2.0
"""Every verb takes `org/name`: from the Hugging Face cache without a request, else from the Hub, and at one commit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint
from hubserver import COMMIT, Hub, serve_hub

from zpptool.config.plan import load_plan_file
from zpptool.errors import ExitCode

pytest.importorskip("huggingface_hub")

OTHER = "f" * 40


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", shards=2)


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub({"org/name": model}, tmp_path / "caches") as served:
        yield served


def cached(hub: Hub, model: Path, commit: str = COMMIT) -> dict[str, str]:
    """Put a model into the Hugging Face cache as snapshot_download leaves it; return an environment without a hub."""
    home = hub.cache / "hf/hub/models--org--name"
    blobs, snapshot = home / "blobs", home / "snapshots" / commit
    blobs.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        blob = blobs / f"{number:040x}"
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs/main").write_text(commit)
    return {**hub.env, "HF_HUB_OFFLINE": "1"}


def test_a_plan_names_the_commit_and_stays_with_it_when_the_branch_moves(zpptool, hub: Hub, tmp_path: Path) -> None:
    made = zpptool("plan", "org/name", "--num-stages", 2, "-o", tmp_path / "zpp.yaml", env=hub.env)
    assert made.code == 0, made.err
    assert load_plan_file(tmp_path / "zpp.yaml").model == f"hf://org/name@{COMMIT}"
    other = write_checkpoint(tmp_path / "other", llama(6), llama_config(6))
    hub.branches["main"] = OTHER
    hub.commits = {OTHER: other, COMMIT: hub.models["org/name"]}
    again = zpptool("validate", tmp_path / "zpp.yaml", "--model", f"org/name@{COMMIT}", "--json", env=hub.env)
    assert again.code == 0, again.err
    assert again.json["model_checked"] is True
    moved = zpptool("validate", tmp_path / "zpp.yaml", "--model", "org/name", "--revision", OTHER, env=hub.env)
    assert moved.code == ExitCode.INVALID
    assert "the plan is for 4 layers" in moved.out


def test_the_verbs_that_read_headers_take_an_id(zpptool, hub: Hub) -> None:
    ranges = zpptool("validate-ranges", "--model", "org/name", "--num-stages", 2, "--json", env=hub.env)
    assert ranges.json["ranges"] == [[0, 2], [2, 4]], ranges.err
    doctor = zpptool("doctor", "org/name", "--json", env=hub.env)
    assert [item["message"] for item in doctor.json["findings"] if item["check"] == "model"] == [
        f"hf://org/name@{COMMIT}: 4 layers, 15 tensors, 3.1 KiB to be fetched"
    ]
    missing = zpptool("doctor", "org/absent", "--json", env=hub.env)
    assert missing.code == ExitCode.FAILURE
    (found,) = [item for item in missing.json["findings"] if item["check"] == "model"]
    assert found["level"] == "blocker"
    assert "nor a model on the Hub that you may read" in found["message"]


def test_a_cached_model_is_used_offline_by_every_verb(zpptool, hub: Hub, model: Path, tmp_path: Path) -> None:
    offline = cached(hub, model)
    plan = tmp_path / "zpp.yaml"
    assert zpptool("plan", "org/name", "--num-stages", 2, "-o", plan, env=offline).code == 0
    assert load_plan_file(plan).model == f"hf://org/name@{COMMIT}"
    checked = zpptool("validate", plan, "--json", env=offline)
    assert checked.json["model_checked"] is True
    split = zpptool("split", "org/name", "--num-stages", 2, "-o", tmp_path / "out", env=offline)
    assert split.code == 0, split.err
    manifest = json.loads((tmp_path / "out/stage_0/zpp-stage.json").read_text())
    assert manifest["source"] == f"hf://org/name@{COMMIT}"
    proven = zpptool("validate", tmp_path / "out", "--model", "org/name", "--json", env=offline)
    assert (proven.code, proven.json["bytes_proven"]) == (0, True)
    doctor = zpptool("doctor", "org/name", "--json", env=offline)
    (found,) = [item["message"] for item in doctor.json["findings"] if item["check"] == "model"]
    assert "whole in " in found
    assert not hub.requests


def test_a_cache_that_lacks_weights_is_not_the_model(zpptool, hub: Hub, model: Path) -> None:
    offline = cached(hub, model)
    (hub.cache / f"hf/hub/models--org--name/snapshots/{COMMIT}/model-00002-of-00002.safetensors").unlink()
    ran = zpptool("plan", "org/name", "--num-stages", 2, env=offline)
    assert ran.code == ExitCode.FAILURE
    assert "nor whole in the Hugging Face cache, and HF_HUB_OFFLINE forbids fetching it" in ran.err
    assert "hf download org/name" in ran.err
    assert zpptool("plan", "org/name", "--num-stages", 2, env=hub.env).code == 0


@pytest.mark.long
def test_a_renamed_model_is_read_and_named(zpptool, hub: Hub) -> None:
    hub.renamed["old/name"] = "org/name"
    ran = zpptool("plan", "old/name", "--num-stages", 2, "--json", env=hub.env)
    assert ran.code == 0, ran.err
    assert ran.json["model"] == f"hf://org/name@{COMMIT}"
    assert "old/name is now called org/name on the Hub" in ran.err


def test_a_typed_token_is_used_and_warned_of(zpptool, hub: Hub) -> None:
    hub.token = "hf_secret"
    refused = zpptool("plan", "org/name", "--num-stages", 2, "--token", "hf_wrong", env=hub.env)
    assert refused.code == ExitCode.INVALID
    typed = zpptool("plan", "org/name", "--num-stages", 2, "--token", "hf_secret", env=hub.env)
    assert typed.code == 0, typed.err
    assert "set HF_TOKEN instead" in typed.err
    assert "hf_secret" not in typed.out + typed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "org/name@v1", "--revision", "v2"], "the revision is given twice: v1 and v2"),
        (["plan", "/no/such/model", "--revision", "v2"], "--revision is for models on the Hugging Face Hub"),
        (["plan", "ftp://host/model"], "the address is not valid"),
        (["plan", "org/name", "--token", ""], "the token is empty"),
    ],
)
def test_names_that_cannot_be_meant(zpptool, words: list[str], message: str) -> None:
    ran = zpptool(*words, "--num-stages", 2)
    assert (ran.code, ran.out) == (ExitCode.USAGE, "")
    assert message in ran.err.splitlines()[0]
