# SPDX-License-Identifier: Apache-2.0
"""A FIFO in the place of a file is refused by every command that reads one, and never waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from zpptool.errors import ExitCode

COMMANDS = [
    ["--config", "FIFO", "split", "MODEL", "--num-stages", "2", "--dry-run"],
    ["deploy", "compose", "--plan", "FIFO", "-o", "OUT"],
    ["run-stage", "--plan", "FIFO", "--stage-idx", "0"],
    ["rebalance", "--plan", "FIFO", "--ranges", "0-2", "2-4"],
    ["stage", "replace", "1", "--to", "b", "--plan", "FIFO"],
    ["keys", "show", "FIFO"],
    ["run-stage", "MODEL", "--ranges", "0-2", "2-4", "--stage-idx", "0", "--keys", "FIFO"],
    ["serve", "MODEL", "--num-stages", "2", "--api-key-file", "FIFO"],
    ["serve", "MODEL", "--num-stages", "2", "--ssl-certfile", "FIFO", "--ssl-keyfile", "FIFO"],
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_a_fifo_is_refused_at_once(zpptool, tmp_path: Path, words: list[str]) -> None:
    os.mkfifo(tmp_path / "fifo")
    places = {"FIFO": tmp_path / "fifo", "MODEL": write_checkpoint(tmp_path / "model"), "OUT": tmp_path / "out"}
    ran = zpptool(*(places.get(word, word) for word in words))
    assert ran.code == ExitCode.INVALID, ran.err
    assert "is a FIFO, not a regular file" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_fifo_in_a_checkpoint_is_refused_at_once(zpptool, tmp_path: Path, name: str) -> None:
    model = write_checkpoint(tmp_path / "model")
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    ran = zpptool("split", model, "--num-stages", 2, "-o", tmp_path / "out", "--json")
    assert ran.code == ExitCode.INVALID, ran.err
    assert name in ran.json["error"]["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["[" * 20000, "base-port: 2024-99-99", f"base-port: {'9' * 5000}", "a: &a [*a]"])
def test_absurd_settings_are_one_line(zpptool, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    ran = zpptool("--config", tmp_path / "x.yaml", "validate-ranges", "--ranges", "0-1", "--total-layers", 1)
    assert ran.code == ExitCode.INVALID, ran.err
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("length", [256, 260, 5000])
def test_an_output_name_that_is_too_long_is_refused(zpptool, tmp_path: Path, length: int) -> None:
    ran = zpptool("split", write_checkpoint(tmp_path / "model"), "--num-stages", 2, "-o", tmp_path / ("b" * length))
    assert ran.code == ExitCode.INVALID, ran.err
    assert "too long" in ran.err
