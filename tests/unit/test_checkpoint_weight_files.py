# SPDX-License-Identifier: Apache-2.0
"""Which files are read where the index and the files do not agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint, write_safetensors

from zpptool.checkpoint.index import INDEX_NAME, read_index
from zpptool.checkpoint.join import plan_join, write_join
from zpptool.checkpoint.split import split_checkpoint
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.errors import ZppError


def map_to(directory: Path, files: dict[str, str]) -> None:
    """Replace file names in the index."""
    index = json.loads((directory / INDEX_NAME).read_text())
    index["weight_map"] = {name: files.get(file, file) for name, file in index["weight_map"].items()}
    (directory / INDEX_NAME).write_text(json.dumps(index))


def test_a_whole_single_file_beside_a_stale_index_is_read(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shards=2)
    for shard in model.glob("*-of-*"):
        shard.unlink()
    write_safetensors(model / "model.safetensors", llama())
    index = read_index(model)
    assert set(index.tensors) == set(llama())
    assert f"{INDEX_NAME} is stale (remove it): it names 2 file(s) that are not there" in index.notes[0]
    split_checkpoint(model, tmp_path / "split", 2)
    assert verify_split(find_target(tmp_path / "split", model)).faults == []
    write_join(plan_join(tmp_path / "split"), tmp_path / "joined")
    assert read_index(tmp_path / "joined").notes == ()


def test_a_complete_set_of_shards_beside_the_index_of_another_set_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    map_to(tmp_path, {f"model-0000{n}-of-00002.safetensors": f"model-0000{n}-of-00009.safetensors" for n in (1, 2)})
    index = read_index(tmp_path)
    assert set(index.tensors) == set(llama())
    assert "the weights are read from model-00001-of-00002.safetensors" in index.notes[0]


@pytest.mark.parametrize("lost", ["shard", "tensor"])
def test_the_index_is_named_as_the_likely_culprit_if_the_files_may_be_whole(tmp_path: Path, lost: str) -> None:
    write_checkpoint(tmp_path, shards=3)
    map_to(tmp_path, {f"model-0000{n}-of-00003.safetensors": f"weights-{n}.safetensors" for n in (1, 2, 3)})
    if lost == "shard":
        (tmp_path / "model-00002-of-00003.safetensors").unlink()
    else:
        write_safetensors(tmp_path / "model-00002-of-00003.safetensors", {"model.layers.1.x": ("BF16", (1,))})
    with pytest.raises(ZppError, match=r"names 3 missing file\(s\), the first is weights-1") as caught:
        read_index(tmp_path)
    assert INDEX_NAME in (caught.value.hint or "")


def test_shards_in_a_folder_are_read_as_the_index_names_them(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shards=2)
    (model / "weights").mkdir()
    for shard in list(model.glob("*-of-*")):
        shard.rename(model / "weights" / shard.name)
    index = read_index(model)
    assert set(index.tensors) == set(llama())
    assert "that are in the folder weights" in index.notes[0]
    map_to(
        model, {f"model-0000{n}-of-00002.safetensors": f"weights/model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    )
    assert read_index(model).notes == ()
    map_to(model, {"weights/model-00001-of-00002.safetensors": "./weights/model-00001-of-00002.safetensors"})
    assert read_index(model).notes == ()
    split_checkpoint(model, tmp_path / "split", 2)
    verdict = verify_split(find_target(tmp_path / "split", model))
    assert (verdict.faults, verdict.left_out) == ([], {})
    write_join(plan_join(tmp_path / "split"), tmp_path / "joined")
    joined = {path.relative_to(tmp_path / "joined").as_posix() for path in tmp_path.glob("joined/weights/*")}
    assert joined == {f"weights/model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    assert set(read_index(tmp_path / "joined").tensors) == set(llama())


def test_shards_in_two_folders_are_not_guessed_at(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / "model-00002-of-00002.safetensors", tmp_path / folder)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ZppError, match="missing file"):
        read_index(tmp_path)


def test_tensors_that_no_index_names_are_noted(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    assert read_index(tmp_path).notes == ()
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    del index["weight_map"]["lm_head.weight"]
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    (note,) = read_index(tmp_path).notes
    assert "does not name 1 tensor(s) of its files, the first is lm_head.weight" in note
    assert note in plan_split(tmp_path, 2).notes


def test_an_index_that_names_the_wrong_file_of_a_tensor_is_set_right(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shards=2)
    index = json.loads((model / INDEX_NAME).read_text())
    first, second = sorted(set(index["weight_map"].values()))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        index["weight_map"][name] = {first: second, second: first}[index["weight_map"][name]]
    (model / INDEX_NAME).write_text(json.dumps(index))
    read = read_index(model)
    assert read.tensors["lm_head.weight"].file.name == second
    assert list(read.tensors) == [tensor.name for header in read.headers for tensor in header.tensors]
    assert (read.stale, len(read.notes)) == ({}, 1)
    assert "is wrong about 2 tensor(s), the first is model.embed_tokens.weight" in read.notes[0]
    split_checkpoint(model, tmp_path / "split", 2)
    assert verify_split(find_target(tmp_path / "split", model)).faults == []


@pytest.mark.parametrize(
    "names",
    [
        ("pytorch_model-00001-TP-000.safetensors", "pytorch_model-00001-TP-001.safetensors"),
        ("model0-mp2.safetensors", "model1-mp2.safetensors"),
        ("model-rank-0-part-0.safetensors", "model-rank-1-part-0.safetensors"),
        ("weights.tp0.safetensors", "weights.tp1.safetensors"),
    ],
)
@pytest.mark.parametrize("indexed", [True, False])
def test_parts_of_tensor_parallel_ranks_are_named_as_such(
    tmp_path: Path, names: tuple[str, str], indexed: bool
) -> None:
    for name in names:
        write_safetensors(tmp_path / name, llama())
    (tmp_path / "config.json").write_text(json.dumps(llama_config()))
    if indexed:
        (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(llama(), names[0])}))
    with pytest.raises(ZppError, match=r"is divided for tensor parallelism: .* hold the parts of 2 ranks") as caught:
        read_index(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["pytorch_model-00001-TP-000", "model0-mp8", "model-rank-0-part-0"])
def test_the_part_of_one_rank_is_no_model(tmp_path: Path, name: str) -> None:
    write_safetensors(tmp_path / f"{name}.safetensors", llama())
    (tmp_path / "config.json").write_text(json.dumps(llama_config()))
    with pytest.raises(ZppError, match=r"is divided for tensor parallelism: .* holds the part of one rank"):
        read_index(tmp_path)
    (tmp_path / f"{name}.safetensors").rename(tmp_path / "model0-mp1.safetensors")
    assert set(read_index(tmp_path).tensors) == set(llama())


def test_numbers_in_names_of_whole_files_are_no_ranks(tmp_path: Path) -> None:
    kinds = llama()
    names = list(kinds)
    write_safetensors(tmp_path / "model-rank-0.safetensors", {name: kinds[name] for name in names[:5]})
    write_safetensors(tmp_path / "model-rank-1.safetensors", {name: kinds[name] for name in names[5:]})
    (tmp_path / "config.json").write_text(json.dumps(llama_config()))
    assert set(read_index(tmp_path).tensors) == set(kinds)


def test_weights_that_mlx_quantised_are_refused(tmp_path: Path) -> None:
    kinds = {**llama(tied=True), "model.embed_tokens.scales": ("BF16", (48, 1))}
    write_checkpoint(tmp_path, kinds, llama_config(quantization={"group_size": 64, "bits": 4}))
    with pytest.raises(ZppError, match=r"that MLX quantised \(4 bits\)") as caught:
        plan_split(tmp_path, 2)
    assert "Split the checkpoint that they were made from" in (caught.value.hint or "")
    write_checkpoint(tmp_path, llama(), llama_config(quantization={"group_size": 64, "bits": 4}))
    assert plan_split(tmp_path, 2).nbytes


def test_a_refusal_names_a_stale_index_too(tmp_path: Path) -> None:
    """What is left beside a stale index may be a part only: the index may be the reason why layers are missing."""
    write_checkpoint(tmp_path, shards=3)
    for shard in tmp_path.glob("*-of-*"):
        shard.unlink()
    write_safetensors(tmp_path / "model.safetensors", {name: llama()[name] for name in list(llama())[:6]})
    with pytest.raises(ZppError, match=r"holds no tensor|no group of tensors") as caught:
        plan_split(tmp_path, 2)
    assert f"{INDEX_NAME} is stale" in (caught.value.hint or "")
