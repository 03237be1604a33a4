# SPDX-License-Identifier: Apache-2.0
"""Pipelines of a model that is on the Hub: every byte once on one machine, and each stage's own bytes on several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hubserver import COMMIT, Hub, serve_hub
from served import Served
from stages import completion, free_base_port, started, wait_until_ready

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.structure import stage_tensors
from zpptool.partition import even_partition

pytest.importorskip("huggingface_hub")
pytestmark = [pytest.mark.torch, pytest.mark.long, pytest.mark.timeout(400)]

READY_S = 240
HEADER_BYTES = 128 * 1024
OTHER = "f" * 40


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", layers=3, tied=False, hidden_size=64, vocab_size=4096)


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub({"org/name": model}, tmp_path / "caches") as served:
        for name, value in served.env.items():
            monkeypatch.setenv(name, value)
        yield served


def weight_bytes(hub: Hub) -> int:
    return sum(count for name, _start, count in hub.sent if name.endswith(".safetensors"))


def test_serve_downloads_each_byte_once_and_serves_the_name_that_was_typed(hub: Hub, model: Path, tmp_path) -> None:
    served = Served(tmp_path, "org/name", "--num-stages", 3)
    try:
        served.until_ready()
        assert httpx.get(f"{served.url}/v1/models", trust_env=False).json()["data"][0]["id"] == "org/name"
        with httpx.Client(base_url=served.url, trust_env=False, timeout=60) as client:
            assert completion(client, model="org/name", prompt="one two", max_tokens=4)["text"] is not None
    finally:
        served.close()
    for path in model.iterdir():
        assert hub.bytes_of(path.name) == path.stat().st_size, path.name


def test_stages_fetch_their_own_bytes_and_another_commit_is_refused(zpptool, hub: Hub, model, tmp_path: Path) -> None:
    base = free_base_port(5)
    common = ["--total-stages", 3, "--engine", "transformers", "--base-port", base, "--start-timeout", READY_S]
    api = ["--port", base + 4]
    own = [stage_tensors(read_index(model), even_partition(3, 3), stage) for stage in range(3)]
    for stage in range(3):
        hub.forget()
        assert zpptool("fetch", "org/name", "--num-stages", 3, "--stage", stage).code == 0
        nbytes = sum(tensor.nbytes for tensor in own[stage])
        assert nbytes <= weight_bytes(hub) <= nbytes + HEADER_BYTES + 32 * 64
    hub.forget()
    commands = [["org/name", "--stage-idx", stage, *common, *(api if stage == 0 else [])] for stage in range(3)]
    (tmp_path / "second").mkdir()
    with started(tmp_path / "second", commands) as stages:
        url = f"http://127.0.0.1:{base + 4}"
        wait_until_ready(url, stages, READY_S)
        assert httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["id"] == "org/name"
    assert not hub.requests, "a second start sends no request"
    hub.commits = {COMMIT: model, OTHER: model}
    commands[2] = [*commands[2], "--revision", OTHER]
    (tmp_path / "third").mkdir()
    with started(tmp_path / "third", commands) as stages:
        assert stages[0].wait(READY_S) == 3
        assert f"has the model hf://org/name@{OTHER}" in stages[0].text()
        assert "name one commit on every stage" in stages[0].text()
