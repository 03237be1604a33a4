# SPDX-License-Identifier: Apache-2.0
"""`zpptool plan` as a user runs it, and what reads its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint
from conftest import Ran


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plan") / "model"
    write_checkpoint(directory, llama(layers=6), llama_config(layers=6))
    return directory


def test_a_plan_is_written_and_validated(model: Path, tmp_path: Path, zpptool: Callable[..., Ran]) -> None:
    file = tmp_path / "zpp.yaml"
    made = zpptool("plan", model, "--ranges", "0-1", "1-6", "--hosts", "a,b", "-o", file, "--", "--max-model-len", "64")
    assert made.code == 0, made.err
    run = f"zpptool run-stage --plan {file} --stage-idx 1 --keys keys/stage_1.keys"
    assert f"on b:\n  open tcp 15552 on host b for host a\n  {run}\n" in made.out
    assert "--max-model-len" in file.read_text()
    checked = zpptool("validate", file, "--json")
    assert checked.code == 0, checked.err
    assert checked.json["valid"] is True
    assert checked.json["model_checked"] is True

    again = zpptool("plan", model, "--num-stages", 2, "-o", file)
    assert again.code == 3
    assert "exists already" in again.err

    file.write_text(file.read_text().replace("layers: 1-6", "layers: 2-6"))
    broken = zpptool("validate", file)
    assert broken.code == 3
    assert "layer 1" in broken.out
    assert "layer 1" in zpptool("run-stage", "--plan", file, "--stage-idx", 0).err


def test_the_plan_gives_the_wire_codec(model: Path, tmp_path: Path, zpptool: Callable[..., Ran]) -> None:
    file = tmp_path / "zpp.yaml"
    assert zpptool("plan", model, "--num-stages", 2, "--wire-codec", "zstd", "-o", file).code == 0
    assert "wire_codec: zstd" in file.read_text()
    twice = zpptool("run-stage", "--plan", file, "--stage-idx", 0, "--wire-codec", "none")
    assert twice.code == 2
    assert "leave out --wire-codec" in twice.err
    unknown = zpptool("plan", model, "--num-stages", 2, "--wire-codec", "lossy")
    assert unknown.code == 2
    assert "lossy" in unknown.err


def test_json_has_what_each_stage_needs(model: Path, zpptool: Callable[..., Ran]) -> None:
    made = zpptool("plan", "--model", model, "--num-stages", 2, "--json").json
    assert made["schema_version"] == 1
    assert [stage["layers"] for stage in made["stages"]] == [[0, 3], [3, 6]]
    assert all(stage["weight_bytes"] > 0 for stage in made["stages"])
    assert made["stages"][0]["connect"] == made["stages"][1]["bind"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--num-stages", "7"), 3, "7"),
        ((), 2, "stages"),
        (("--num-stages", "2", "--hosts", "a,b,c"), 2, "3 hosts"),
        (("--num-stages", "2", "--base-port", "65535"), 5, "65535"),
        (("--num-stages", "2", "--api-port", "15550"), 5, "15550"),
        (("--num-stages", "2", "--api-port", "15552"), 5, "15552"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    model: Path, zpptool: Callable[..., Ran], words: tuple[str, ...], code: int, message: str
) -> None:
    ran = zpptool("plan", model, *words)
    assert ran.code == code, ran.err
    assert message in ran.err


def test_options_that_the_plan_gives_are_refused_beside_it(
    model: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    file = tmp_path / "zpp.yaml"
    zpptool("plan", model, "--num-stages", 2, "-o", file)
    ran = zpptool("run-stage", "--plan", file, "--stage-idx", 0, "--base-port", 1, "--", "--x")
    assert ran.code == 2
    assert "leave out --base-port, what follows --" in ran.err
    assert zpptool("run-stage", "--plan", file).code == 2
    assert zpptool("run-stage", "--plan", file, "--stage-idx", 5).code == 2
