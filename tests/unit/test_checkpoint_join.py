# SPDX-License-Identifier: Apache-2.0
"""Joining: the checkpoint is restored byte for byte, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.checkpoint.index import INDEX_NAME, read_index
from zpptool.checkpoint.join import plan_join, write_join
from zpptool.checkpoint.manifest import load_manifest
from zpptool.checkpoint.mode import Mode
from zpptool.checkpoint.split import split_checkpoint, write_split
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.stage_tensors import model_digest
from zpptool.checkpoint.streaming import CopyOptions
from zpptool.errors import ZppError


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def content_of(directory: Path) -> dict[str, bytes]:
    """Return the content of all files but weights and index, and of every tensor."""
    made = {name: own for name, own in tree(directory).items() if "safetensors" not in name}
    for name, tensor in read_index(directory).tensors.items():
        raw = tensor.file.read_bytes()
        made[f"{tensor.file.name}/{name}"] = raw[tensor.offset : tensor.offset + tensor.nbytes]
    return made


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ranges", [["0-4"], ["0-1", "1-4"], ["0-1", "1-2", "2-3", "3-4"]])
def test_the_checkpoint_comes_back_as_it_was(tmp_path: Path, shards: int, tied: bool, ranges: list[str]) -> None:
    config = llama_config(tie_word_embeddings=tied)
    source = write_checkpoint(tmp_path / "model", llama(tied=tied), config, shards=shards)
    split_checkpoint(source, tmp_path / "out", ranges=ranges)
    done: list[int] = []
    plan = plan_join(tmp_path / "out")
    back = write_join(plan, tmp_path / "back", done.append)
    assert sum(done) == plan.nbytes == read_index(source).nbytes
    assert content_of(back) == content_of(source)
    assert model_digest(back) == model_digest(source)
    if shards > 1:
        assert json.loads((back / INDEX_NAME).read_text()) == json.loads((source / INDEX_NAME).read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out", "back"}


def test_files_in_the_form_of_safetensors_come_back_to_the_last_byte(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    numpy = pytest.importorskip("numpy")
    source = write_checkpoint(tmp_path / "model", shards=1)
    tensors = {name: numpy.arange(8 * 6, dtype="float32").reshape(6, 8) for name in llama()}
    safetensors.save_file(tensors, source / "model.safetensors", {"format": "pt"})
    split_checkpoint(source, tmp_path / "out", 3)
    plan = plan_join(tmp_path / "out")
    assert [file.identical for file in plan.files] == [True]
    write_join(plan, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source)


def test_without_hashes_it_comes_back_too(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", shards=2)
    split_checkpoint(source, tmp_path / "out", 2, options=CopyOptions(Mode.COPY, hashed=False))
    assert content_of(write_join(plan_join(tmp_path / "out"), tmp_path / "back")) == content_of(source)


def test_dropped_tensors_stay_dropped_and_are_reported(tmp_path: Path) -> None:
    kinds = llama() | {name.replace(".0.", ".4."): kind for name, kind in llama().items() if ".layers.0." in name}
    source = write_checkpoint(tmp_path / "model", kinds, llama_config(num_nextn_predict_layers=1))
    write_split(plan_split(source, 2, drop_prediction=True), tmp_path / "out")
    back = write_join(plan_join(tmp_path / "out"), tmp_path / "back")
    gone = {f"model.safetensors/{name}" for name in load_manifest(tmp_path / "out/stage_0").dropped}
    assert gone
    assert content_of(back).keys() == content_of(source).keys() - gone


def test_a_flipped_bit_is_not_passed_on(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model")
    stages = split_checkpoint(source, tmp_path / "out", 2)
    tensor = read_index(stages[1]).tensors["model.norm.weight"]
    with tensor.file.open("r+b") as stream:
        stream.seek(tensor.offset)
        old = stream.read(1)
        stream.seek(tensor.offset)
        stream.write(bytes([old[0] ^ 1]))
    with pytest.raises(ZppError, match=r"stage 1: the bytes of tensor model\.norm\.weight"):
        write_join(plan_join(tmp_path / "out"), tmp_path / "back")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}


def test_stages_that_do_not_form_a_model_are_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model")
    split_checkpoint(source, tmp_path / "out", 2)
    with pytest.raises(ZppError, match="is one stage of a split"):
        plan_join(tmp_path / "out/stage_0")
    (tmp_path / "out/stage_1").rename(tmp_path / "else")
    with pytest.raises(ZppError, match="stage 1 of 2 is missing"):
        plan_join(tmp_path / "out")


def test_an_existing_output_is_refused_without_a_hint_at_force(tmp_path: Path) -> None:
    split_checkpoint(write_checkpoint(tmp_path / "model"), tmp_path / "out", 2)
    with pytest.raises(ZppError, match="exists and is not empty") as caught:
        write_join(plan_join(tmp_path / "out"), tmp_path / "model")
    assert "--force" not in str(caught.value.hint)
