# SPDX-License-Identifier: Apache-2.0
"""What is no checkpoint is named as what it is, with what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import write_checkpoint, write_safetensors

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.splitplan import plan_split
from zpptool.errors import ExitCode, ZppError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 17\n"


def refusal(path: Path) -> tuple[str, str]:
    """Return message and hint without the path of the test."""
    with pytest.raises(ZppError) as caught:
        plan_split(path, 2)
    assert caught.value.exit_code == ExitCode.INVALID
    return caught.value.message, caught.value.hint or ""


def test_an_adapter_is_named_with_its_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    write_safetensors(tmp_path / "adapter_model.safetensors", {"x.lora_A.weight": ("BF16", (1, 8))})
    message, hint = refusal(tmp_path)
    assert "holds an adapter for org/base, not a model" in message
    assert "Merge it into its base model" in hint
    (tmp_path / "config.json").write_text("{}")
    assert "holds an adapter for org/base" in refusal(tmp_path)[0]
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    assert "holds an adapter for org/base" in refusal(tmp_path)[0]
    (tmp_path / "adapter_config.json").write_text("[1")
    assert "holds an adapter, not a model" in refusal(tmp_path)[0]


def test_the_cache_of_a_model_is_named_with_its_snapshot(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--m"
    for commit in ("aaa", "bbb"):
        write_checkpoint(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("bbb\n")
    message, hint = refusal(cache)
    assert "is the cache of one model of the Hugging Face Hub" in message
    assert hint.endswith("models--org--m/snapshots/bbb")
    (cache / "refs/main").unlink()
    assert refusal(cache)[1].endswith("snapshots/aaa")
    message, hint = refusal(tmp_path)
    assert "is the cache of the Hugging Face Hub, which holds 1 model(s)" in message
    assert "models--org--m/snapshots/COMMIT" in hint


def test_a_cache_without_a_snapshot_is_named(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    assert "with no snapshot in it" in refusal(tmp_path)[0]


def test_a_directory_around_a_checkpoint_names_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "inner")
    assert refusal(tmp_path)[1] == f"Name the checkpoint in it that holds one, for example {tmp_path / 'inner'}."
    write_checkpoint(tmp_path / "other")
    assert "Name one of the 2 directories in it" in refusal(tmp_path)[1]


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_without_its_config_is_known_by_its_tensors(tmp_path: Path, config: bool) -> None:
    if config:
        write_checkpoint(tmp_path)
        (tmp_path / "model.safetensors").unlink()
    names = ["layers.0.q_proj.lora_A.weight", "layers.0.q_proj.lora_B.weight"]
    write_safetensors(tmp_path / "pytorch_lora_weights.safetensors", dict.fromkeys(names, ("BF16", (1, 8))))
    assert "holds an adapter, not a model" in refusal(tmp_path)[0]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model.gguf", "gguf_file=NAME"),
        ("pytorch_model.bin", "save_pretrained, as safetensors"),
        ("tf_model.h5", "TensorFlow"),
        ("consolidated.00.pth", "Hugging Face checkpoint"),
        ("model.onnx", "exported from"),
        ("global_step100/mp_rank_00.pt", "zero_to_fp32"),
    ],
)
def test_other_formats_have_hints_of_their_own(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    assert hint in refusal(tmp_path)[1]


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    for name, expected in (("m.gguf", "gguf_file=NAME"), ("model.safetensors", f"that holds it: {tmp_path}")):
        (tmp_path / name).write_bytes(b"x")
        message, hint = refusal(tmp_path / name)
        assert "is not a directory" in message
        assert expected in hint


def test_weights_in_a_folder_are_named(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    (model / "weights").mkdir()
    (model / "model.safetensors").rename(model / "weights/model.safetensors")
    assert "Its folder weights holds some" in refusal(model)[1]


def test_a_git_lfs_pointer_in_place_of_the_index_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(POINTER)
    assert "model.safetensors.index.json is a Git LFS pointer" in refusal(tmp_path)[0]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer.model", "code/modeling.py"])
def test_a_git_lfs_pointer_in_place_of_a_needed_file_is_refused(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / name).write_text(POINTER)
    message, hint = refusal(tmp_path)
    assert f"{name} is a Git LFS pointer, not the file itself" in message
    assert "git lfs pull" in hint


def test_a_pointer_in_place_of_an_image_does_no_harm(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "figure.png").write_text(POINTER)
    assert "figure.png" in plan_split(tmp_path, 2).small_files
    assert read_index(tmp_path).notes == ()
