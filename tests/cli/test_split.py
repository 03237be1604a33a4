# SPDX-License-Identifier: Apache-2.0
"""`zpptool split` as a user runs it, the prior art's command line included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import llama, write_checkpoint, write_raw, write_sparse

from zpptool.errors import ExitCode


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", shards=2)


def ranges_of(ran) -> list[list[int]]:
    return [stage["layers"] for stage in ran.json["stages"]]


def test_scripts_get_every_stage(zpptool, model: Path, tmp_path: Path) -> None:
    ran = zpptool("split", model, "--num-stages", 2, "--output-dir", tmp_path / "out", "--json")
    assert ran.code == 0
    assert ran.err == ""
    assert ran.json["valid"] is True
    assert ran.json["faults"] == ran.json["dropped"] == ran.json["shared"] == []
    assert sum(stage["tensors"] for stage in ran.json["stages"]) == len(llama())
    assert ran.json["stages"][1] == {
        "stage": 1, "path": str(tmp_path / "out/stage_1"), "layers": [2, 4], "tensors": 8, "bytes": 1616,
    }  # fmt: skip
    assert (tmp_path / "out/stage_1/zpp-stage.json").is_file()


def test_people_get_a_table(zpptool, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", llama(tied=True))
    ran = zpptool("split", source, "--num-stages", 2, "-o", tmp_path / "out")
    assert ran.code == 0
    assert "4 layers (model.layers)" in ran.out
    assert "in several stages: model.embed_tokens.weight (tied" in ran.out
    assert "wrote 2 stages" in ran.out


@pytest.mark.parametrize(
    "words",
    [
        ["MODEL", "--ranges", "0-1", "1-3", "3-4"],
        ["--ranges", "0-1", "1-3", "3-4", "MODEL"],
        ["--ranges", "0-1,1-3", "3-4", "--model", "MODEL"],
        ["--model", "MODEL", "--ranges", "[0-1]", "[1:3]", "3-4", "--num-stages", "3"],
    ],
)
def test_ranges_and_model_in_any_order(zpptool, model: Path, tmp_path: Path, words: list[str]) -> None:
    typed = [str(model) if word == "MODEL" else word for word in words]
    ran = zpptool("split", *typed, "--output-dir", tmp_path / "out", "--json", "--dry-run")
    assert ran.code == 0, ran.err
    assert ranges_of(ran) == [[0, 1], [1, 3], [3, 4]]


def test_the_prior_arts_line(zpptool, model: Path, tmp_path: Path) -> None:
    ran = zpptool("split", "--model", model, "--pipeline-parallel-size", 4, "--output-dir", tmp_path / "out", "--json")
    assert ran.code == 0
    assert ranges_of(ran) == [[0, 1], [1, 2], [2, 3], [3, 4]]


@pytest.mark.parametrize("words", [[], ["--no-hash", "--mode", "copy"]])
def test_a_split_that_does_not_wait_for_the_disk_is_the_same(
    zpptool, model: Path, tmp_path: Path, words: list[str]
) -> None:
    made = {}
    for name, more in (("synced", []), ("not", ["--no-sync"])):
        out = tmp_path / name
        assert zpptool("split", model, "--num-stages", 2, "-o", out, *words, *more).code == 0
        made[name] = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert made["not"] == made["synced"]


def test_a_dry_run_writes_nothing(zpptool, model: Path, tmp_path: Path) -> None:
    ran = zpptool("split", model, "--num-stages", 2, "--dry-run", "--output-dir", tmp_path / "out")
    assert ran.code == 0
    assert "nothing was written" in ran.out
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_choice_between_files_is_noted(zpptool, model: Path) -> None:
    (model / "consolidated.safetensors").write_bytes(b"")
    ran = zpptool("split", model, "--num-stages", 2, "--dry-run", "--json")
    assert ran.code == 0
    assert "consolidated.safetensors" in ran.err
    assert zpptool("split", model, "--num-stages", 2, "--dry-run", "--json", "-q").err == ""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--num-stages", "2", "-o", "OUT"], ExitCode.USAGE, "no model"),
        (["MODEL", "MODEL", "--num-stages", "2", "-o", "OUT"], ExitCode.USAGE, "2 models"),
        (["MODEL", "--num-stages", "2"], ExitCode.USAGE, "no directory for the stages"),
        (["MODEL", "-o", "OUT"], ExitCode.USAGE, "neither --num-stages nor --ranges"),
        (["MODEL", "--num-stages", "5", "-o", "OUT"], ExitCode.INVALID, "5 stages are more than"),
        (["MODEL", "--ranges", "0-1", "2-4", "-o", "OUT"], ExitCode.INVALID, "no stage owns layer 1"),
        (["MODEL/config.json", "--num-stages", "2", "-o", "OUT"], ExitCode.INVALID, "is not a directory"),
        (["MODEL/code", "--num-stages", "2", "-o", "OUT"], ExitCode.INVALID, "config.json"),
        (["MODEL", "--num-stages", "2", "-o", "MODEL"], ExitCode.INVALID, "is inside the source"),
        (["MODEL", "--num-stages", "2", "-o", "MODEL/.."], ExitCode.INVALID, "contains the source"),
    ],
)
def test_refusals(zpptool, model: Path, tmp_path: Path, words: list[str], code: ExitCode, message: str) -> None:
    typed = [word.replace("MODEL", str(model)).replace("OUT", str(tmp_path / "out")) for word in words]
    ran = zpptool("split", *typed)
    assert (ran.code, ran.out) == (code, "")
    first, *hint = ran.err.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert len(hint) <= 1
    assert not (tmp_path / "out").exists()


def test_an_existing_output_needs_force_for_the_same_split_and_for_another(
    zpptool, model: Path, tmp_path: Path
) -> None:
    words = ["split", model, "--num-stages", 2, "-o", tmp_path / "out"]
    assert zpptool(*words).code == 0
    again = zpptool(*words)
    assert again.code == ExitCode.INVALID
    assert "already holds this split" in again.err
    assert zpptool(*words, "--force").code == 0
    words[3] = 4
    other = zpptool(*words, "--json")
    assert other.code == ExitCode.INVALID
    assert other.json["error"]["exit_code"] == ExitCode.INVALID
    assert zpptool(*words, "--force").code == 0


def test_a_read_only_source_can_be_split(zpptool, model: Path, tmp_path: Path) -> None:
    for path in [*model.iterdir(), model]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert zpptool("split", model, "--num-stages", 2, "-o", tmp_path / "out").code == 0


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = write_sparse(tmp_path / "model", 2**20)
    words = [sys.executable, "-m", "zpptool", "split", str(source), "--num-stages", "2", "-o", str(tmp_path / "out")]
    limited = ["bash", "-c", 'ulimit -f 1024; exec "$@"', "limited", *words]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == ExitCode.FAILURE
    assert done.stderr.startswith(f"error: writing {tmp_path}/out failed: ")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_next_split_repairs_what_a_stopped_one_leaves(zpptool, tmp_path: Path, how: int) -> None:
    source = write_sparse(tmp_path / "model", 256 * 2**20)
    command = [sys.executable, "-m", "zpptool", "split", str(source), "--num-stages", "2", "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        partial = tmp_path / ".out.zpp-partial"
        deadline = time.monotonic() + 30
        while not any(partial.rglob("*.safetensors")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, how)
        process.communicate(timeout=30)
    assert not (tmp_path / "out").exists()
    if how == signal.SIGINT:
        assert process.returncode == ExitCode.INTERRUPTED
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    shrunk = write_checkpoint(tmp_path / "small")
    assert zpptool("split", shrunk, "--num-stages", 2, "-o", tmp_path / "out").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model", "small", "out"}


def test_what_ctrl_c_leaves_is_named_and_continued(zpptool, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", shards=3)
    with (source / "model-00002-of-00003.safetensors").open("r+b") as stream:
        raw = stream.read()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        header["model.layers.1.huge"] = {"dtype": "U8", "shape": [2**29], "data_offsets": [end, end + 2**29]}
        write_raw(source / "model-00002-of-00003.safetensors", header, raw[8 + length :])
        stream.truncate((source / "model-00002-of-00003.safetensors").stat().st_size + 2**29)
    (source / "model.safetensors.index.json").unlink()
    words = [
        sys.executable,
        "-m",
        "zpptool",
        "split",
        str(source),
        "--ranges",
        "0-1",
        "1-4",
        "-o",
        str(tmp_path / "out"),
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not any((tmp_path / ".out.zpp-work").glob("*.receipt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "run the same command again to resume" in err
    assert not (tmp_path / "out").exists()
    assert zpptool(*words[3:]).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}
