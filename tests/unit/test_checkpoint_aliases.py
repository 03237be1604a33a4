# SPDX-License-Identifier: Apache-2.0
"""Second names of shared tensors in a file's metadata are honoured, and no first stage is without an embedding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Kinds, index_of, llama, llama_config, write_checkpoint, write_safetensors

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.join import plan_join, write_join
from zpptool.checkpoint.split import split_checkpoint
from zpptool.checkpoint.stage_tensors import index_digest, load_plan
from zpptool.checkpoint.structure import infer_structure
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.errors import ZppError
from zpptool.partition import even_partition

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def without_embedding() -> Kinds:
    return {name: kind for name, kind in llama().items() if name != EMBEDDING}


def stages(kinds: Kinds, name: str, config: dict[str, Any], aliases: dict[str, str] | None = None) -> tuple[int, ...]:
    structure = infer_structure(index_of(kinds, llama_config(**config), aliases))
    return structure.stages_of(name, even_partition(4, 4))


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
def test_a_head_that_is_the_embedding_by_the_metadata_goes_to_both_ends(config: dict[str, Any]) -> None:
    assert stages(without_embedding(), HEAD, config, {EMBEDDING: HEAD}) == (0, 3)


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}])
def test_a_head_alone_is_the_embedding_if_the_config_does_not_deny_it(config: dict[str, Any]) -> None:
    assert stages(without_embedding(), HEAD, config) == (0, 3)
    structure = infer_structure(index_of(without_embedding(), llama_config(**config)))
    assert "lm_head is used as the embedding" in structure.notes[0]


@pytest.mark.parametrize("extra", [{}, {"model.embed_positions.weight": ("BF16", (4096, 8))}])
def test_a_lost_embedding_is_refused(extra: Kinds) -> None:
    config = llama_config(tie_word_embeddings=False)
    with pytest.raises(ZppError, match="holds lm_head but no input embedding"):
        infer_structure(index_of({**without_embedding(), **extra}, config))


def test_a_layer_whose_tensor_is_stored_with_another_layer_is_complete() -> None:
    """A merged model that repeats a layer, saved with safetensors' save_model."""
    shared = "model.layers.1.mlp.up_proj.weight"
    kinds = {name: kind for name, kind in llama().items() if name != "model.layers.3.mlp.up_proj.weight"}
    aliases = {"model.layers.3.mlp.up_proj.weight": shared}
    assert stages(kinds, shared, {}, aliases) == (1, 3)


def test_a_checkpoint_with_second_names_is_split_validated_joined_and_read(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", without_embedding(), llama_config(tie_word_embeddings=True))
    write_safetensors(source / "model.safetensors", without_embedding(), {"format": "pt", EMBEDDING: HEAD})
    assert read_index(source).aliases == {EMBEDDING: HEAD}
    split_checkpoint(source, tmp_path / "split", 2)
    assert verify_split(find_target(tmp_path / "split", source)).faults == []
    for stage, directory in enumerate((tmp_path / "split/stage_0", tmp_path / "split/stage_1")):
        for place in (directory, source):
            names = {tensor.name for tensor in load_plan(place, stage, even_partition(4, 2))}
            assert {EMBEDDING, HEAD} <= names
    write_join(plan_join(tmp_path / "split"), tmp_path / "joined")
    assert index_digest(read_index(tmp_path / "joined")) == index_digest(read_index(source))


def test_metadata_that_names_no_tensor_is_left_alone(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model")
    write_safetensors(source / "model.safetensors", llama(), {"format": "pt", "note": "x", HEAD: EMBEDDING})
    assert read_index(source).aliases == {}
    assert json.loads((source / "config.json").read_text())["model_type"] == "llama"
