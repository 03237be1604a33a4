# SPDX-License-Identifier: Apache-2.0
"""Modules behind the last layer are never placed before the first: heads, and projections of the last hidden state."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoints import HIDDEN, VOCAB, Kinds, index_of, layered, llama, llama_config

from zpptool.checkpoint.structure import infer_structure
from zpptool.errors import ZppError
from zpptool.partition import even_partition

LARGE = ("BF16", (2048, 2048))
VISION = {"vision_config": {"num_hidden_layers": 4}}
AUDIO = {"audio_config": {"num_hidden_layers": 4}}


def stages(name: str, shape: tuple[int, ...] = (2048, 2048), **config: Any) -> tuple[int, ...]:
    """Return the stages of a tensor beside a Llama of four layers in four stages."""
    structure = infer_structure(index_of({**llama(), name: ("BF16", shape)}, llama_config(**config)))
    return structure.stages_of(name, even_partition(4, 4))


@pytest.mark.parametrize(
    "name",
    [
        "audio_out.text_lm_head.weight", "audio_out.codes_lm_head.weight", "image_head.weight", "speech_heads.3.weight",
        "vision_decoder.conv_in.weight", "audio_generator.layers.0.weight", "depformer.layers.0.weight",
        "depth_decoder.model.layers.0.weight", "lm_heads.1.weight", "reward.weight", "rerank_score.weight",
        "reranker.dense.weight",
    ],
)  # fmt: skip
@pytest.mark.parametrize("config", [{}, AUDIO, VISION])
def test_heads_and_decoders_follow_the_last_layer(name: str, config: dict[str, Any]) -> None:
    assert stages(name, **config) == (3,)


@pytest.mark.parametrize("name", ["embedding_proj.weight", "custom_text_proj.weight", "linear.weight", "dense.weight"])
@pytest.mark.parametrize("config", [{}, VISION])
def test_a_projection_is_placed_by_its_shape(name: str, config: dict[str, Any]) -> None:
    size = 1 << 20
    assert stages(name, (size, HIDDEN), **config) == (3,)
    assert stages(name, (HIDDEN, size), **config) == (0,)


@pytest.mark.parametrize("name", ["projector.0.weight", "text_projection.weight", "embedding_proj_layer.weight"])
def test_otherwise_the_config_places_it(name: str) -> None:
    assert stages(name, architectures=["SomeForRetrieval"]) == (3,)
    assert stages(name, embedding_dim=2048) == (3,)
    with pytest.raises(ZppError, match="not clear which stage needs tensor") as caught:
        stages(name)
    assert f"--place '{name}=first'" in (caught.value.hint or "")


def test_a_small_one_that_fits_both_ends_goes_to_every_stage() -> None:
    assert stages("embedding_proj.weight", (16, 16)) == (0, 1, 2, 3)


def test_a_projector_feeds_the_model_only_where_it_takes_more_than_text() -> None:
    assert stages("projector.0.weight", **VISION) == (0,)
    assert stages("mm_projector.0.weight") == (0,)
    kinds = {**llama(), "vision_tower.blocks.0.weight": LARGE, "projector.0.weight": LARGE}
    assert infer_structure(index_of(kinds)).stages_of("projector.0.weight", even_partition(4, 4)) == (0,)


def test_a_projector_out_of_the_hidden_state_follows_it_in_a_vision_model_too() -> None:
    assert stages("output_projector.0.weight", (1 << 20, HIDDEN), **VISION) == (3,)
    assert stages("connector.weight", (1 << 20, HIDDEN), **VISION) == (3,)
    assert stages("multi_vector_projector.weight", **VISION, multi_vector_projector_dim=2048) == (3,)
    with pytest.raises(ZppError, match="not clear which stage"):
        stages("multi_vector_projector.weight", **VISION)


def test_modules_that_differ_in_a_number_are_placed_together() -> None:
    """Two linear layers, out of the hidden size and back to it, follow the layers or feed them, but not both."""
    size = 1 << 20
    kinds = {**llama(), "dense1.weight": ("BF16", (size, HIDDEN)), "dense2.weight": ("BF16", (HIDDEN, size))}
    with pytest.raises(ZppError, match="not clear which stage needs tensor dense1"):
        infer_structure(index_of(kinds))
    structure = infer_structure(index_of(kinds, llama_config(architectures=["SomeEmbeddingModel"])))
    for name in ("dense1.weight", "dense2.weight"):
        assert structure.stages_of(name, even_partition(4, 4)) == (3,)


def test_a_module_that_takes_the_hidden_size_and_gives_another_does_not_feed_the_text_model() -> None:
    """As published: BAGEL's llm2vae and vae2llm. Embeddings and learned vectors have the same shape, and feed it."""
    assert stages("llm2vae.weight", (1 << 20, HIDDEN), **VISION) == (3,)
    assert stages("vae2llm.weight", (HIDDEN, 1 << 20), **VISION) == (0,)
    for name in ("vte.weight", "query_tokens.weight", "embed_codes.weight", "image_newline"):
        assert stages(name, (1 << 20, HIDDEN), **VISION) == (0,)


def test_projections_that_belong_to_the_text_model_stay_where_they_are() -> None:
    """As published: Gemma 3n computes per-layer inputs, ELECTRA projects its embeddings."""
    kinds: Kinds = {**llama(), "model.per_layer_model_projection.weight": ("BF16", (1 << 20, HIDDEN))}
    kinds |= {"model.embeddings_project.weight": ("BF16", (HIDDEN, 1 << 20))}
    structure = infer_structure(index_of(kinds))
    for name in ("model.per_layer_model_projection.weight", "model.embeddings_project.weight"):
        assert structure.stages_of(name, even_partition(4, 4)) == (0,)


def test_a_speech_head_is_no_lm_head() -> None:
    """Without a text head the embedding is the head, though the model also has a head for sound."""
    kinds = {**llama(tied=True), "audio_out.codes_lm_head.weight": ("BF16", (VOCAB + 1, HIDDEN))}
    structure = infer_structure(index_of(kinds, llama_config(**AUDIO)))
    assert structure.stages_of("model.embed_tokens.weight", even_partition(4, 4)) == (0, 3)
    kinds |= {"audio_out.text_lm_head.weight": ("BF16", (VOCAB, HIDDEN))}
    structure = infer_structure(index_of(kinds, llama_config(**AUDIO)))
    assert structure.stages_of("model.embed_tokens.weight", even_partition(4, 4)) == (0,)


def test_towers_keep_their_own_heads() -> None:
    kinds = {**llama(), **layered("vision_tower.encoder.layers", 4), "vision_tower.head.proj.weight": LARGE}
    structure = infer_structure(index_of(kinds, llama_config(**VISION)))
    assert structure.stages_of("vision_tower.head.proj.weight", even_partition(4, 4)) == (0,)
