# SPDX-License-Identifier: Apache-2.0
"""Nothing of a checkpoint is lost in silence: split, validate and join name what is not carried."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from checkpoints import llama, write_checkpoint, write_safetensors
from typer.testing import CliRunner

from zpptool.checkpoint.join import plan_join, write_join
from zpptool.checkpoint.left_out import parts_left_out
from zpptool.checkpoint.manifest import load_manifest
from zpptool.checkpoint.split import write_split
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.streaming import CopyOptions
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.cli.app import app
from zpptool.errors import ZppError

PARTS = {
    "2_Dense/model.safetensors": "a module that is applied after the model (sentence-transformers)",
    "adapter_model.safetensors": "an adapter to the model",
    "speech-lora/adapter_model.bin": "an adapter to the model",
    "head.safetensors": "tensors that are not in the model's weight files",
    "vocoder/decoder.safetensors": "tensors that are not in the model's weight files",
    "speaker/pytorch_model.bin": "tensors that are not in the model's weight files",
    "voices.pt": "data that model code may load",
    "speech_tokenizer.onnx": "data that model code may load",
    "vocoder/generator.ckpt": "data that model code may load",
}
COPIES = {
    "copy.safetensors": "tensors under names that the weight files hold too",
    "pytorch_model-00001-of-00002.bin": "the weights, or an index of them, in another format",
    "pytorch_model.bin.index.json": "the weights, or an index of them, in another format",
    "model.onnx": "the weights, or an index of them, in another format",
    "onnx/quantized.onnx": "the weights, or an index of them, in another format",
    "gguf/model-q4.gguf": "the weights, or an index of them, in another format",
    "consolidated.safetensors": "the weights under the names of the model's own code",
    "original/consolidated.00.pth": "the weights under the names of the model's own code",
    "optimizer.pt": "the state of a training run",
    "training_args.bin": "the state of a training run",
    "checkpoint-500/": "the state of a training run",
    "train.jsonl": "the state of a training run",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint with files of every kind that is not carried."""
    directory = write_checkpoint(tmp_path / "model")
    for name in (*PARTS, *COPIES, "checkpoint-500/model.safetensors"):
        if name.endswith("/"):
            continue
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 64)
    write_safetensors(directory / "head.safetensors", {"linear.weight": ("BF16", (8, 8))})
    write_safetensors(directory / "copy.safetensors", dict(list(llama().items())[:3]))
    (directory / "lost.json").symlink_to("nowhere.json")
    (directory / "code" / "circle").symlink_to("..")
    os.mkfifo(directory / "pipe")
    return directory


OTHERS = {
    "lost.json": "a link to a file that does not exist",
    "code/circle": "a link to a folder that contains it",
    "pipe": "not a regular file",
}


def test_split_validate_and_join_name_everything_that_is_left_out(model: Path, tmp_path: Path) -> None:
    expected = dict(sorted({**PARTS, **COPIES, **OTHERS}.items()))
    plan = plan_split(model, 2)
    assert plan.left_out == expected
    for name in expected:
        assert any(name in note for note in plan.notes)
    write_split(plan, tmp_path / "split")
    assert load_manifest(tmp_path / "split/stage_1").left_out == expected
    verdict = verify_split(find_target(tmp_path / "split"))
    assert (verdict.faults, verdict.left_out, verdict.complete) == ([], expected, False)
    assert plan_join(tmp_path / "split").left_out == expected


def test_a_part_that_was_added_later_is_found_by_validating_against_the_model(model: Path, tmp_path: Path) -> None:
    for path in [*PARTS, *OTHERS]:
        (model / path).unlink()
    write_split(plan_split(model, 2), tmp_path / "split")
    assert verify_split(find_target(tmp_path / "split", model)).complete
    (model / "later.pt").write_bytes(b"x")
    verdict = verify_split(find_target(tmp_path / "split", model))
    assert verdict.left_out["later.pt"] == "data that model code may load"
    assert (verdict.valid, verdict.complete) == (True, False)


def test_aux_carries_parts_and_join_brings_them_back(model: Path, tmp_path: Path) -> None:
    for path in OTHERS:
        (model / path).unlink()
    plan = plan_split(model, 2, aux=True)
    assert set(plan.left_out) == set(COPIES)
    assert set(PARTS) <= set(plan.small_files)
    write_split(plan, tmp_path / "split")
    verdict = verify_split(find_target(tmp_path / "split", model))
    assert (verdict.faults, verdict.complete) == ([], True)
    write_join(plan_join(tmp_path / "split"), tmp_path / "joined")
    for path in PARTS:
        assert (tmp_path / "joined" / path).read_bytes() == (model / path).read_bytes()
    (model / "voices.pt").write_bytes(b"other")
    faults = verify_split(find_target(tmp_path / "split", model)).faults
    assert faults[0].message == "stage 0: voices.pt differs from the model's"
    (model / "voices.pt").unlink()
    assert "voices.pt is not in the model" in verify_split(find_target(tmp_path / "split", model)).faults[0].message


def test_a_module_that_the_list_of_modules_names_and_that_is_not_there_is_named(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "../x"}, 3]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1_Pooling").mkdir()
    plan = plan_split(model, 2, aux=True)
    assert plan.left_out == {"2_Dense": "named by modules.json, and not there"}
    assert parts_left_out(plan.left_out) == ["2_Dense"]


def test_aux_follows_no_link_out_of_the_checkpoint(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.pt").write_bytes(b"secret")
    (model / "voices.pt").unlink()
    (model / "voices.pt").symlink_to(tmp_path / "secret.pt")
    assert "voices.pt" in plan_split(model, 2).left_out
    with pytest.raises(ZppError, match=r"voices\.pt leads out of the checkpoint"):
        plan_split(model, 2, aux=True)
    assert "voices.pt" in plan_split(model, 2, aux=True, follow_links=True).small_files


def test_a_name_that_is_not_utf8_is_named_escaped(model: Path, tmp_path: Path) -> None:
    (model / os.fsdecode(b"voice\xff.pt")).write_bytes(b"x")
    plan = plan_split(model, 2)
    assert parts_left_out(plan.left_out)[-1] == "voice\\udcff.pt"
    write_split(plan, tmp_path / "split")
    assert "voice\\udcff.pt" in load_manifest(tmp_path / "split/stage_0").left_out


def test_the_commands_say_that_the_model_is_not_whole(model: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    split, joined = str(tmp_path / "split"), str(tmp_path / "joined")
    made = run(app, ["split", str(model), "--num-stages", "2", "-o", split, "--json"])
    assert made.exit_code == 0
    assert {entry["path"] for entry in json.loads(made.stdout)["left_out"]} == {*PARTS, *COPIES, *OTHERS}
    text = run(app, ["validate", split, "--model", str(model)]).stdout
    assert "not in the split: voices.pt (data that model code may load)" in text
    assert "not the whole model" in text
    checked = json.loads(run(app, ["validate", split, "--json"]).stdout)
    assert (checked["valid"], checked["whole"], len(checked["left_out"])) == (True, False, len(PARTS) + len(COPIES) + 3)
    text = run(app, ["join", split, "-o", joined]).stdout
    assert "not in the split: voices.pt (data that model code may load)" in text
    assert "not the whole checkpoint" in text


def test_join_claims_the_sources_bytes_only_if_they_are_proven(tmp_path: Path) -> None:
    """Hashes prove them; a split without hashes can hold other bytes under the same header."""
    model = write_checkpoint(tmp_path / "model")
    weights = model / "model.safetensors"
    write_split(plan_split(model, 1), tmp_path / "first")
    write_join(plan_join(tmp_path / "first"), tmp_path / "normal")  # with the header as safetensors writes it
    weights.write_bytes((tmp_path / "normal/model.safetensors").read_bytes())
    for hashed in (True, False):
        split = tmp_path / f"hashed-{hashed}"
        write_split(plan_split(model, 2), split, options=CopyOptions(hashed=hashed))
        (file,) = plan_join(split).files
        assert (file.same_head, file.hashed, file.identical) == (True, hashed, hashed)
    text = CliRunner().invoke(app, ["join", str(tmp_path / "hashed-False"), "-o", str(tmp_path / "out")]).stdout
    assert "not proven: the split was made with --no-hash" in text
