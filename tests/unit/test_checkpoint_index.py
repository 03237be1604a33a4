# SPDX-License-Identifier: Apache-2.0
"""Which files belong to a checkpoint, and what is refused, with one sentence that names the path."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint, write_safetensors

from zpptool.checkpoint.index import INDEX_NAME, read_index
from zpptool.errors import ExitCode, ZppError


def refusal(directory: Path) -> ZppError:
    with pytest.raises(ZppError) as caught:
        read_index(directory)
    assert caught.value.exit_code == ExitCode.INVALID
    assert "\n" not in caught.value.message
    return caught.value


def rewrite_index(directory: Path, change) -> None:
    path = directory / INDEX_NAME
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_found_once(tmp_path: Path, shards: int) -> None:
    index = read_index(write_checkpoint(tmp_path, shards=shards))
    assert set(index.tensors) == set(llama())
    assert len({tensor.file for tensor in index.tensors.values()}) == shards == len(index.headers)
    assert index.num_layers == 4
    assert index.notes == ()


def test_shards_without_an_index_are_read_when_all_are_there(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=3)
    (tmp_path / INDEX_NAME).unlink()
    assert set(read_index(tmp_path).tensors) == set(llama())
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "2 safetensors file(s) and no index, but their names state 3" in refusal(tmp_path).message


def test_hugging_face_files_win_over_mistrals_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    write_safetensors(tmp_path / "consolidated.safetensors", {"tok_embeddings.weight": ("BF16", (4, 4))})
    assert set(read_index(tmp_path).tensors) == set(llama())


def test_a_hub_cache_of_links_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert set(read_index(tmp_path / "snapshot").tensors) == set(llama())


def test_a_tensor_that_the_index_forgot_is_kept(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    rewrite_index(tmp_path, lambda weight_map: weight_map.pop("lm_head.weight"))
    assert "lm_head.weight" in read_index(tmp_path).tensors


def test_of_two_copies_the_indexed_one_is_used(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    second = tmp_path / "model-00002-of-00002.safetensors"
    own = {t.name: (t.dtype, t.shape) for t in read_index(tmp_path).tensors.values() if t.file == second}
    write_safetensors(second, {**own, "model.embed_tokens.weight": ("BF16", (1, 1))})
    index = read_index(tmp_path)
    assert index.tensors["model.embed_tokens.weight"].shape == llama()["model.embed_tokens.weight"][1]
    assert index.stale == {"model.embed_tokens.weight": second}


def test_two_copies_without_an_index_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert "in both a.safetensors and b.safetensors" in refusal(tmp_path).message


def test_an_index_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "missing file(s), the first is model-00002-of-00003.safetensors" in refusal(tmp_path).message


def test_an_index_that_names_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    rewrite_index(tmp_path, lambda m: m.update({"model.layers.9.x": "model-00001-of-00002.safetensors"}))
    assert "model.layers.9.x in model-00001-of-00002.safetensors" in refusal(tmp_path).message


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/../b.safetensors", "", 3])
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    write_checkpoint(tmp_path, shards=2)
    rewrite_index(tmp_path, lambda m: m.update({"lm_head.weight": name}))
    assert "not the name of a file below it" in refusal(tmp_path).message


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": []}', "{}", '{"metadata": {"a": "\\ud800"}}'])
def test_an_invalid_index_is_refused(tmp_path: Path, content: str) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / INDEX_NAME).write_text(content)
    assert INDEX_NAME in refusal(tmp_path).message


def test_an_index_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    os.mkfifo(tmp_path / "model.safetensors.index.json")
    assert "is a FIFO" in refusal(tmp_path).message


def test_a_config_nested_deeper_than_can_be_read_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    assert "config.json cannot be read as JSON" in refusal(tmp_path).message


def test_a_path_that_is_not_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a directory" in refusal(tmp_path / "file").message
    assert "is not a directory" in refusal(tmp_path / "none").message
    assert "config.json" in refusal(tmp_path).message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pytorch_model.bin", ".bin weights only"),
        ("model-q4.gguf", ".gguf weights only"),
        ("consolidated.00.pth", ".pth weights only"),
        ("consolidated.safetensors", "only Mistral's own"),
        ("adapter_model.safetensors", "an adapter"),
        ("readme.md", "holds no safetensors"),
        ("flax_model.msgpack", ".msgpack weights only"),
        ("weights.npz", ".npz weights only"),
    ],
)
def test_other_weights_are_refused_with_advice(tmp_path: Path, name: str, text: str) -> None:
    if not name.endswith(".gguf"):
        (tmp_path / "config.json").write_text(json.dumps(llama_config()))
    write_safetensors(tmp_path / name, {"a": ("U8", (1,))})
    fault = refusal(tmp_path)
    assert text in fault.message
    assert fault.hint


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("stage_0/config.json", "it is a split"),
        ("params.json", "Mistral's own files"),
        ("model_index.json", "diffusers"),
        ("model.onnx", "holds no config.json"),
    ],
)
def test_the_error_of_a_missing_config_names_the_likely_cause(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    write_safetensors(tmp_path / "consolidated.safetensors", {"a": ("U8", (1,))})
    fault = refusal(tmp_path)
    assert text in fault.message
    assert fault.hint


def test_a_checkpoint_of_nothing_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {})
    assert "hold no tensor" in refusal(tmp_path).message
