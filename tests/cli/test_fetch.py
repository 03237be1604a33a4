# SPDX-License-Identifier: Apache-2.0
"""`zpptool fetch` and what `run-stage` and `serve` use of it: own bytes once, nothing twice, and resumable."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import llama, write_checkpoint, write_sparse
from hubserver import COMMIT, Hub, serve_hub

from zpptool.checkpoint.manifest import load_manifest
from zpptool.errors import ExitCode
from zpptool.sources.ranges import BLOCK_BYTES

pytest.importorskip("huggingface_hub")

LARGE = {name: (dtype, (shape[0], 64 * 1024)) for name, (dtype, shape) in llama().items() if len(shape) == 2}
HEADERS_AND_SAMPLES = 3 * 128 * 1024 + 32 * 64


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama() | LARGE, shards=3)


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub({"org/name": model}, tmp_path / "caches") as served:
        yield served


def weight_bytes(hub: Hub) -> int:
    """Bytes of weight files that the hub has sent."""
    return sum(count for name, _start, count in hub.sent if name.endswith(".safetensors"))


def journaled(folder: Path) -> int:
    """Bytes that the journals of unfinished fetches list."""
    lines = [line for path in folder.glob("**/*.journal") for line in path.read_bytes().splitlines()]
    return sum(json.loads(line)[1] for line in lines if line.endswith(b"]"))


def test_a_stage_is_fetched_once_and_is_then_used_without_a_request(zpptool, hub: Hub, model: Path) -> None:
    words = ["fetch", "org/name", "--num-stages", 3, "--stage", 1, "--json"]
    first = zpptool(*words, env=hub.env)
    assert first.code == 0, first.err
    stage = Path(first.json["directory"])
    assert stage.is_relative_to(hub.cache / "zpp")
    assert load_manifest(stage).nbytes <= weight_bytes(hub) <= load_manifest(stage).nbytes + HEADERS_AND_SAMPLES
    assert zpptool("validate", stage, "--model", model).code == 0
    hub.forget()
    ranges = map(str, load_manifest(stage).ranges)
    for again in (words, ["fetch", f"org/name@{COMMIT}", "--ranges", *ranges, "--stage", 1, "--json"]):
        assert zpptool(*again, env={**hub.env, "HF_HUB_OFFLINE": "1"}).json == first.json
    assert not hub.requests


def test_a_whole_model_is_downloaded_once_into_the_shared_cache(zpptool, hub: Hub, model: Path) -> None:
    first = zpptool("fetch", "org/name", "--json", env=hub.env)
    assert first.code == 0, first.err
    snapshot = Path(first.json["directory"])
    assert snapshot == hub.cache / f"hf/hub/models--org--name/snapshots/{COMMIT}"
    for path in (path for path in model.rglob("*") if path.is_file()):
        assert (snapshot / path.relative_to(model)).read_bytes() == path.read_bytes()
        assert hub.bytes_of(path.relative_to(model).as_posix()) == path.stat().st_size
    hub.forget()
    again = zpptool("fetch", "org/name", "--json", env=hub.env)
    stage = zpptool("fetch", "org/name", "--num-stages", 3, "--stage", 1, "--json", env=hub.env)
    assert again.json == first.json
    assert stage.json["directory"] == str(snapshot)
    assert not hub.requests


def test_a_killed_fetch_goes_on_where_it_stopped(zpptool, hub: Hub) -> None:
    words = ["fetch", "org/name", "--num-stages", "2", "--stage", "0", "--json"]
    hub.seconds_a_chunk = 0.02
    process = subprocess.Popen(
        [sys.executable, "-m", "zpptool", *words],
        env={**os.environ, **hub.env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journals = hub.cache / "zpp/stages"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and journaled(journals) < BLOCK_BYTES:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    kept = journaled(journals)
    assert kept >= BLOCK_BYTES
    hub.seconds_a_chunk = 0.0
    hub.forget()
    done = zpptool(*words, env=hub.env)
    assert done.code == 0, done.err
    nbytes = load_manifest(Path(done.json["directory"])).nbytes
    assert weight_bytes(hub) <= nbytes - kept + HEADERS_AND_SAMPLES
    assert zpptool("validate", done.json["directory"], "--model", hub.models["org/name"]).code == 0


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(zpptool, hub: Hub, model: Path) -> None:
    hub.models["org/name"] = write_sparse(model.parent / "huge", 1 << 40)
    ran = zpptool("fetch", "org/name", "--num-stages", 2, "--stage", 0, env=hub.env)
    assert ran.code == ExitCode.INVALID
    assert "not enough disk" in ran.err
    assert weight_bytes(hub) <= HEADERS_AND_SAMPLES


def test_a_url_is_read_by_ranges_and_a_change_is_noticed(zpptool, hub: Hub, model: Path, tmp_path: Path) -> None:
    url = f"{hub.endpoint}/org/name/resolve/main"
    words = ["fetch", url, "--num-stages", 3, "--stage", 2, "--json"]
    first = zpptool(*words, env=hub.env)
    assert first.code == 0, first.err
    held = load_manifest(Path(first.json["directory"])).nbytes
    assert held <= weight_bytes(hub) <= held + HEADERS_AND_SAMPLES
    assert first.json["source"].startswith(f"{url}#")
    hub.forget()
    assert zpptool(*words, env=hub.env).json == first.json
    assert not hub.requests
    whole = zpptool("fetch", url, "--json", env=hub.env)
    assert whole.code == 0, whole.err
    weights = "model-00001-of-00003.safetensors"
    assert (Path(whole.json["directory"]) / weights).read_bytes() == (model / weights).read_bytes()
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    changed = zpptool("plan", first.json["source"], "--num-stages", 3, env=hub.env)
    assert changed.code == ExitCode.INVALID
    assert "has changed since" in changed.err


def test_into_a_volume_what_is_there_is_kept_without_asking(zpptool, hub: Hub, tmp_path: Path) -> None:
    plan = zpptool("plan", "org/name", "--num-stages", 2, "--json", env=hub.env).json
    words = ["--ranges", "0-2", "2-4", "--stage", 1, "--model-digest", plan["model_digest"], "--replace", "--json"]
    old, new = tmp_path / ("a" * 32), tmp_path / ("b" * 32)
    assert zpptool("fetch", plan["model"], *words, "-o", old, env=hub.env).code == 0
    hub.forget()
    down = {**hub.env, "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert zpptool("fetch", plan["model"], *words, "-o", old, env=down).json["directory"] == str(old / "stage_1")
    assert not hub.requests
    words[1:3] = ["0-1", "1-4"]
    assert zpptool("fetch", plan["model"], *words, "-o", new, env=hub.env).code == 0
    assert (new / "stage_1/zpp-stage.json").is_file()
    assert not old.exists()
    other = zpptool("fetch", plan["model"], "--ranges", "0-2", "2-4", "--stage", 1, "--model-digest", "0" * 64,
                    "-o", old, env=hub.env)  # fmt: skip
    assert other.code == ExitCode.INVALID
    assert "is not the model that was planned for" in other.err


@pytest.mark.long
def test_what_was_fetched_is_listed_and_removed(zpptool, hub: Hub, tmp_path: Path) -> None:
    url = f"{hub.endpoint}/org/name/resolve/main"
    stage = zpptool("fetch", "org/name", "--num-stages", 3, "--stage", 1, "--json", env=hub.env).json
    whole = zpptool("fetch", url, "--json", env=hub.env).json
    listed = zpptool("cache", "list", "--json", env=hub.env).json
    assert [(entry["source"], entry["stage"], entry["whole"]) for entry in listed["entries"]] == [
        (stage["source"], 1, True),
        (whole["source"], None, True),
    ]
    assert listed["bytes"] > load_manifest(Path(stage["directory"])).nbytes
    absent = zpptool("cache", "remove", "org/other", env=hub.env)
    assert absent.code == ExitCode.INVALID
    assert zpptool("cache", "remove", "org/name", "--json", env=hub.env).json["removed"] == 1
    assert not Path(stage["directory"]).exists()
    hub.forget()
    assert zpptool("fetch", "org/name", "--num-stages", 3, "--stage", 1, env=hub.env).code == 0
    assert hub.requests
    assert zpptool("cache", "remove", "--all", env=hub.env).code == 0
    assert zpptool("cache", "list", "--json", env=hub.env).json["entries"] == []
