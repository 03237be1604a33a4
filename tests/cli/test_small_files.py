# SPDX-License-Identifier: Apache-2.0
"""Small files with odd names are carried or refused by name; what training left is not carried, and named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from commands import typed_here
from conftest import Ran

from zpptool.checkpoint.leftovers import MAX_NAMED, is_leftover
from zpptool.checkpoint.smallfiles import is_small_name
from zpptool.errors import ExitCode


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    return typed_here(monkeypatch, capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    "name", [b"\xcb\xb5\xc3\xf7.txt", b"a\nb.txt", b"a\x1bb.json", b"folder\xff/a.json", "a\u2028b".encode()]
)
def test_a_name_that_a_manifest_cannot_hold(typed: Callable[..., Ran], model: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(model), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as stream:
        stream.write("x")
    ran = typed("split", model, "--num-stages", "2", "-o", model.parent / "out", "--json")
    assert ran.code == ExitCode.INVALID
    assert "has a name that is not UTF-8 or contains control" in json.loads(ran.out)["error"]["message"]
    assert len(ran.err.splitlines()) == 2
    ran.err.encode()
    assert not (model.parent / "out").exists()


def test_odd_names_are_carried(typed: Callable[..., Ran], model: Path) -> None:
    names = ["模型 说明.txt", "a'b\"c$(d).json", "-o", "ünï.jinja", "a" * 255, "%s {0}.txt", "CON", "a.json "]
    for name in names:
        (model / name).write_text("x")
    out, joined = model.parent / "out", model.parent / "joined"
    assert typed("split", model, "--num-stages", "2", "-o", out).code == ExitCode.OK
    assert typed("validate", out, "--model", model).code == ExitCode.OK
    assert typed("join", out, "-o", joined).code == ExitCode.OK
    for name in names:
        assert (joined / name).read_text() == "x"


LEFTOVERS = [
    "runs/Nov30_host/events.out.tfevents.17.host.1.0", "wandb/run-1/files/config.yaml", "checkpoint-500/config.json",
    "checkpoint-500/tokenizer.json", "global_step1000/latest", "trainer_state.json", "train.jsonl", "logs/a.txt",
    "all_results.json", "train.log", "data/train-00000.parquet", "pytorch_model_fsdp_0/__0_0.distcp",
    "lightning_logs/version_0/hparams.yaml", "random_states_0.pkl",
]  # fmt: skip
NEEDED = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "vocab.json",
    "added_tokens.json", "chat_template.jinja", "additional_chat_templates/rag.jinja", "preprocessor_config.json",
    "modeling_x.py", "configuration_x.py", "1_Pooling/config.json", "scheduler/scheduler_config.json", "README.md",
    "LICENSE", "adapter_config.json", "params.json", "tekken.json", "quantize_config.json", "blog.md", "changelog.txt",
    "runs.py", "selected_tags.csv", "qwen.tiktoken", "checkpoint.json", "logo.png", "spm.vocab", "model_config.yaml",
]  # fmt: skip


def test_leftovers_of_training_are_left_out_and_named(typed: Callable[..., Ran], model: Path) -> None:
    for name in [*LEFTOVERS, *NEEDED]:
        path = model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text("{}")
    out = model.parent / "out"
    ran = typed("split", model, "--num-stages", "2", "-o", out, "--json")
    assert ran.code == ExitCode.OK, ran.err
    notes = " ".join(json.loads(ran.out)["notes"])
    for stage in ("stage_0", "stage_1"):
        carried = {path.relative_to(out / stage).as_posix() for path in (out / stage).rglob("*") if path.is_file()}
        assert not carried & set(LEFTOVERS)
        assert set(NEEDED) <= carried
    assert all(name in notes for name in LEFTOVERS)
    assert not any(f" {name}," in notes for name in NEEDED)
    assert typed("validate", out, "--model", model).code == ExitCode.OK
    again = typed("split", model, "--num-stages", "2", "--stage", "0", "-o", out, "--json")
    assert json.loads(again.out)["kept"] is True


def test_many_leftovers_are_counted(typed: Callable[..., Ran], model: Path) -> None:
    (model / "logs").mkdir()
    for number in range(MAX_NAMED + 5):
        (model / "logs" / f"{number}.txt").touch()
    ran = typed("split", model, "--num-stages", "2", "--dry-run", "--json")
    assert "and 5 more" in json.loads(ran.out)["notes"][-1]


def test_leftovers_are_not_fetched_from_the_hub() -> None:
    assert [name for name in LEFTOVERS if is_small_name(name) or not is_leftover(name)] == []
    assert [name for name in NEEDED if not is_small_name(name) or is_leftover(name)] == []
