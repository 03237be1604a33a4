# SPDX-License-Identifier: Apache-2.0
"""The unsplit model as links into its stages: every tensor once, with the bytes of the source, and nothing copied."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.split import split_checkpoint
from zpptool.errors import ExitCode, ZppError
from zpptool.parity.joined_checkpoint import join_stages


def bytes_of(directory: Path) -> dict[str, bytes]:
    """The bytes of every tensor, read from the position in the index."""
    found = {}
    for name, tensor in read_index(directory).tensors.items():
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.offset)
            found[name] = stream.read(tensor.nbytes)
    return found


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    into = tmp_path / "joined"
    into.mkdir()
    return into


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_exists_once_with_the_bytes_of_the_source(
    tmp_path: Path, joined: Path, tied: bool, shards: int
) -> None:
    config = llama_config(tie_word_embeddings=tied)
    source = write_checkpoint(tmp_path / "model", llama(tied=tied), config, shards=shards)
    stages = split_checkpoint(source, tmp_path / "stages", num_stages=3)
    join_stages(stages, joined)
    assert bytes_of(joined) == bytes_of(source)
    assert read_index(joined).config == read_index(source).config
    for name in ("tokenizer.json", "chat_template.jinja", "code/modeling.py"):
        assert (joined / name).read_bytes() == (source / name).read_bytes()


def test_nothing_is_copied_and_links_work_from_any_directory(
    tmp_path: Path, joined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "model")
    split_checkpoint(source, tmp_path / "stages", num_stages=2)
    monkeypatch.chdir(tmp_path)
    join_stages([Path("stages/stage_0"), Path("stages/stage_1")], joined)
    monkeypatch.chdir("/")
    weights = [path for path in joined.iterdir() if path.suffix == ".safetensors"]
    assert len(weights) == 2
    assert all(path.is_symlink() and path.exists() for path in weights)
    assert bytes_of(joined) == bytes_of(source)


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path, joined: Path) -> None:
    with pytest.raises(ZppError, match="is not a stage directory") as refused:
        join_stages([tmp_path], joined)
    assert refused.value.exit_code is ExitCode.INVALID
