# SPDX-License-Identifier: Apache-2.0
"""`zpptool validate` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from zpptool.checkpoint.split import split_checkpoint
from zpptool.errors import ExitCode


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def split(tmp_path: Path, model: Path) -> Path:
    split_checkpoint(model, tmp_path / "out", 2)
    return tmp_path / "out"


def test_scripts_get_the_proof(zpptool, split: Path, model: Path) -> None:
    ran = zpptool("validate", split, "--model", model, "--json")
    assert ran.code == 0
    assert ran.err == ""
    assert ran.json["valid"] is True
    assert ran.json["whole"] is True
    assert ran.json["faults"] == ran.json["dropped"] == []
    assert [stage["layers"] for stage in ran.json["stages"]] == [[0, 2], [2, 4]]
    assert ran.json["stages"][0]["path"] == str(split / "stage_0")


def test_people_get_the_verdict(zpptool, split: Path, model: Path) -> None:
    ran = zpptool("validate", split)
    assert ran.code == 0
    assert "valid: every layer once, every tensor accounted for" in ran.out
    assert "byte for byte" in zpptool("validate", split, "--model", model).out


def test_every_fault_is_listed_with_stage_and_tensor(zpptool, split: Path) -> None:
    for stage in ("stage_0", "stage_1"):
        with (split / stage / "model.safetensors").open("r+b") as stream:
            stream.seek(-1, 2)
            last = stream.read(1)
            stream.seek(-1, 2)
            stream.write(bytes([last[0] ^ 1]))
    ran = zpptool("validate", split, "--json")
    assert ran.code == ExitCode.INVALID
    assert ran.json["valid"] is False
    assert [(fault["code"], fault["stage"]) for fault in ran.json["faults"]] == [("bytes", 0), ("bytes", 1)]
    assert all(fault["tensor"] in fault["message"] for fault in ran.json["faults"])
    human = zpptool("validate", split)
    assert human.code == ExitCode.INVALID
    assert human.out.count("bytes: stage ") == 2
    assert "invalid: 2 fault(s)" in human.out


def test_one_stage_is_checked_alone_with_a_note(zpptool, split: Path) -> None:
    ran = zpptool("validate", split / "stage_1", "--json")
    assert ran.code == 0
    assert ran.json["whole"] is False
    assert [stage["stage"] for stage in ran.json["stages"]] == [1]
    assert "only that one is checked" in ran.err


def test_with_ranges_it_is_validate_ranges(zpptool) -> None:
    ran = zpptool("validate", "--ranges", "0-8", "8-16", "--total-layers", 16, "--json")
    assert ran.code == 0
    assert ran.json["ranges"] == [[0, 8], [8, 16]]
    assert zpptool("validate", "--ranges", "0-8", "9-16", "--total-layers", 16).code == ExitCode.INVALID


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], ExitCode.USAGE, "nothing to validate"),
        (["OUT", "OUT"], ExitCode.USAGE, "one split directory"),
        (["OUT/none"], ExitCode.INVALID, "is not a directory"),
        (["MODEL"], ExitCode.INVALID, "holds no stage_0"),
        (["OUT", "--model", "OUT"], ExitCode.INVALID, "config.json"),
    ],
)
def test_refusals(zpptool, split: Path, model: Path, words: list[str], code: ExitCode, message: str) -> None:
    typed = [word.replace("MODEL", str(model)).replace("OUT", str(split)) for word in words]
    ran = zpptool("validate", *typed)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err.splitlines()[0]
