# SPDX-License-Identifier: Apache-2.0
"""A real profile of tiny models on the embedded engine: complete, in its schema, without a process left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from zpptool.errors import ExitCode
from zpptool.planner.device_profile import DeviceProfile, Source, TimeSample, read_profile

pytestmark = [pytest.mark.torch, pytest.mark.timeout(120)]
HANG_GUARD_S = 100.0


def samples(profile: DeviceProfile) -> list[TimeSample]:
    """Every time in the profile."""
    grids = [*profile.layers.values(), profile.step, profile.embedding, profile.lm_head, profile.sampler]
    return [sample for grid in grids for sample in (*grid.prefill, *grid.decode)]


def test_a_model_of_two_types_of_layers(zpptool: Callable, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """A model with windows on some of its layers: both types, all parts, and the cache that the layers really hold."""
    file = tmp_path / "cpu.yaml"
    kinds = ("sliding_attention", "full_attention") * 3
    model = tiny_model("gemma3_text", layers=6, layer_types=kinds, sliding_window=8, max_position_embeddings=128)
    ran = zpptool(
        "profile", model, "--engine", "transformers", "--device", "cpu", "--kind", "toy", "--seconds", "2", "-o", file,
        timeout_s=HANG_GUARD_S,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    profile = read_profile(file)
    assert (profile.device, profile.engine) == ("toy", "transformers")
    assert profile.layer_types == ("sliding_attention", "attention") * 3
    assert set(profile.layers) == set(profile.layer_types)
    for grid in (*profile.layers.values(), profile.step, profile.embedding, profile.lm_head, profile.sampler):
        assert grid.prefill
        assert grid.decode
    assert all(sample.source is Source.MEASURED and sample.at for sample in samples(profile))
    assert all(sample.seconds > 0 for sample in profile.sampler.decode)
    assert [entry.max_num_batched_tokens for entry in profile.workspace] == [64, 128]
    assert all(entry.bytes > 1 << 20 for entry in profile.workspace)
    assert profile.load is not None
    assert profile.kv is not None
    config = json.loads((model / "config.json").read_text())
    per_token = 2 * config["num_key_value_heads"] * config["head_dim"] * 4
    assert profile.kv.bytes_per_token == {"attention": per_token, "sliding_attention": per_token}
    assert profile.kv.tokens_at_most == {"sliding_attention": 8}
    assert "unstable" in ran.out or all(sample.stable for sample in samples(profile))


def test_an_interrupt_leaves_nothing(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "cpu.yaml"
    words = ["profile", str(tiny_model("llama")), "--engine", "transformers", "--seconds", "600", "-o", str(file)]
    process = subprocess.Popen(
        [sys.executable, "-m", "zpptool", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        children: list[psutil.Process] = []
        deadline = time.monotonic() + HANG_GUARD_S
        while len(children) < 4 and time.monotonic() < deadline:
            children = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.05)
        assert len(children) == 4
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=HANG_GUARD_S)
    finally:
        process.kill()
    assert process.returncode == ExitCode.INTERRUPTED
    assert list(tmp_path.iterdir()) == []
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_what_cannot_be_measured_is_refused(zpptool: Callable, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model("llama", layers=2)
    ran = zpptool("profile", model, "--engine", "transformers")
    assert ran.code == ExitCode.INVALID
    assert "cannot be measured layer by layer" in ran.err
    (tmp_path / "cpu.yaml").write_text("precious")
    ran = zpptool("profile", model, "--engine", "transformers", "-o", tmp_path / "cpu.yaml")
    assert ran.code == ExitCode.INVALID
    assert (tmp_path / "cpu.yaml").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["MODEL", "--links"], "links are measured without a model"),
        (["--links"], "needs --listen and --peer"),
        (["--links", "--engine", "vllm"], "does not apply with --links"),
        (["MODEL", "--respond"], "applies with --links only"),
        (["--links", "--listen", "nowhere", "--peer", "a:1"], "not an address of the form HOST:PORT"),
    ],
)
def test_options_that_do_not_go_together(zpptool: Callable, words: list[str], said: str) -> None:
    ran = zpptool("profile", *words)
    assert ran.code in (ExitCode.USAGE, ExitCode.ADDRESS)
    assert said in ran.err
