# SPDX-License-Identifier: Apache-2.0
"""`zpptool plan --devices` as a user runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint
from conftest import Ran

DEVICES = """\
zpptool-devices: 1
kinds:
  fast: {memory: 8000, speed: {memory_bytes_per_second: 2e6}}
  slow: {memory: 5000, speed: {memory_bytes_per_second: 1e6, source: spec}}
hosts:
- {name: a, kind: slow}
- {name: b, kind: fast}
links: {default: {round_trip_seconds: 1e-4, bytes_per_second: 1e9}}
workload: {prompt_tokens: 8, answer_tokens: 8, concurrency: 2}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("planned") / "model"
    write_checkpoint(directory, llama(layers=6), llama_config(layers=6, num_attention_heads=2))
    return directory


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    file = tmp_path / "devices.yaml"
    file.write_text(DEVICES)
    return file


def test_a_plan_for_devices_is_written_and_explained(
    model: Path, devices: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    file = tmp_path / "zpp.yaml"
    made = zpptool("plan", model, "--devices", devices, "-o", file)
    assert made.code == 0, made.err
    assert "limited by stage" in made.out
    assert "not measured: times of kind slow (from a data sheet)" in made.out
    text = file.read_text()
    assert "host: a" in text
    assert "host: b" in text
    assert "--max-num-seqs" in text
    assert zpptool("validate", file).code == 0
    again = zpptool("plan", model, "--devices", devices, "--in-force", file, "--json").json
    assert (
        again["planner"]["stages"] == zpptool("plan", model, "--devices", devices, "--json").json["planner"]["stages"]
    )
    by_host = {stage["host"]: stage for stage in again["planner"]["stages"]}
    assert by_host["b"]["layers"][1] - by_host["b"]["layers"][0] > by_host["a"]["layers"][1] - by_host["a"]["layers"][0]
    ranges = [stage["layers"] for stage in again["planner"]["stages"]]
    assert ranges == [stage["layers"] for stage in again["stages"]]
    low, expected, high = (
        again["planner"]["predicted"]["tokens_per_second"][k] for k in ("lowest", "expected", "highest")
    )
    assert low < expected < high


def test_limits_that_the_user_sets_are_kept(
    model: Path, devices: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    file = tmp_path / "zpp.yaml"
    assert zpptool("plan", model, "--devices", devices, "-o", file, "--", "--max-num-seqs", "7").code == 0
    words = file.read_text().split()
    assert words.count("--max-num-seqs") == 1
    assert "7" in " ".join(words).split("--max-num-seqs")[1][:10]


def test_what_does_not_fit_is_refused_with_the_deficit(model: Path, devices: Path, zpptool: Callable[..., Ran]) -> None:
    devices.write_text(DEVICES.replace("5000", "900").replace("8000", "900"))
    refused = zpptool("plan", model, "--devices", devices, "--json")
    assert refused.code == 1
    assert f"{refused.json['deficit_bytes']} bytes" in refused.json["error"]["message"]


def test_without_speeds_it_plans_from_bytes_and_says_so(
    model: Path, devices: Path, zpptool: Callable[..., Ran]
) -> None:
    lines = [line.split(", speed")[0] + "}" if "speed" in line else line for line in DEVICES.splitlines()]
    devices.write_text("\n".join(lines))
    made = zpptool("plan", model, "--devices", devices)
    assert made.code == 0, made.err
    assert "planned from bytes" in made.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--hosts", "a,b"), "--devices chooses"),
        (("--ranges", "0-3", "3-6"), "--devices chooses"),
    ],
)
def test_contradicting_options_are_refused(
    words: tuple[str, ...], named: str, model: Path, devices: Path, zpptool: Callable[..., Ran]
) -> None:
    refused = zpptool("plan", "--model", model, "--devices", devices, *words)
    assert refused.code == 2
    assert named in refused.err


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("kind: slow", "kind: none", "kind none"),
        ("name: b", "name: a", "host a is listed twice"),
        ("memory: 5000", "memory: many", "'many'"),
        ("zpptool-devices: 1", "zpptool-devices: 9", "zpptool-devices"),
        ("concurrency: 2", "concurrency: 0", "concurrency"),
        ("hosts:", "exclude: [c]\nhosts:", "c is pinned or excluded"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(
    old: str, new: str, named: str, model: Path, devices: Path, zpptool: Callable[..., Ran]
) -> None:
    devices.write_text(DEVICES.replace(old, new))
    refused = zpptool("plan", model, "--devices", devices)
    assert refused.code == 3
    assert named in refused.err
