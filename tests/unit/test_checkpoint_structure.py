# SPDX-License-Identifier: Apache-2.0
"""The role of each tensor in the pipeline: names of published checkpoints, and ambiguous ones that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import HIDDEN, VOCAB, Kinds, layered, llama, llama_config
from hypothesis import given, settings
from hypothesis import strategies as st

from zpptool.checkpoint.header import DTYPE_BITS, TensorInfo
from zpptool.checkpoint.index import CheckpointIndex
from zpptool.checkpoint.roles import Side
from zpptool.checkpoint.structure import Structure, assign, infer_structure, stage_tensors
from zpptool.errors import ExitCode, ZppError
from zpptool.partition import even_partition, resolve_partition

EMBED, NORM = ("BF16", (VOCAB, HIDDEN)), ("BF16", (HIDDEN,))
LARGE = ("BF16", (1024, 1024))


def index_of(kinds: Kinds, config: dict[str, Any] | None = None) -> CheckpointIndex:
    tensors = {}
    for name, (dtype, shape) in kinds.items():
        count = 1
        for size in shape:
            count *= size
        tensors[name] = TensorInfo(name, dtype, shape, Path("model.safetensors"), 0, count * DTYPE_BITS[dtype] // 8)
    return CheckpointIndex(Path("somewhere"), llama_config() if config is None else config, tensors, ())


def infer(kinds: Kinds, config: dict[str, Any] | None = None) -> Structure:
    return infer_structure(index_of(kinds, config))


def refusal(kinds: Kinds, config: dict[str, Any] | None = None) -> str:
    with pytest.raises(ZppError) as caught:
        assign(infer(kinds, config), even_partition(4, 2))
    assert caught.value.exit_code == ExitCode.INVALID
    return caught.value.message


def stages_of(structure: Structure, name: str) -> tuple[int, ...]:
    """Return the stages of each tensor, for a model of four layers in four stages."""
    return structure.stages_of(name, even_partition(4, 4))


@pytest.mark.parametrize("root", ["model.", "", "transformer.", "model.language_model.", "a.b.c."])
def test_names_with_any_prefix_or_none(root: str) -> None:
    structure = infer(llama(root=root))
    assert structure.layer_prefix == f"{root}layers"
    assert stages_of(structure, f"{root}embed_tokens.weight") == (0,)
    assert stages_of(structure, f"{root}layers.2.mlp.up_proj.weight") == (2,)
    assert stages_of(structure, f"{root}norm.weight") == (3,)
    assert stages_of(structure, "lm_head.weight") == (3,)


def test_gpt2_as_it_is_published() -> None:
    of_one = {"attn.bias": ("F32", (1, 1, 9, 9)), "attn.c_attn.weight": LARGE, "ln_1.weight": NORM}
    kinds = {"wte.weight": EMBED, "wpe.weight": ("F32", (64, HIDDEN)), "ln_f.bias": NORM, "ln_f.weight": NORM}
    structure = infer({**kinds, **layered("h", 4, of_one)}, {"n_layer": 4, "n_embd": HIDDEN, "vocab_size": VOCAB})
    assert structure.layer_prefix == "h"
    assert stages_of(structure, "h.1.attn.bias") == (1,)
    assert stages_of(structure, "wte.weight") == (0, 3)
    assert stages_of(structure, "wpe.weight") == (0,)
    assert stages_of(structure, "ln_f.bias") == (3,)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("model.rotary_emb.inv_freq", (0, 1, 2, 3)),
        ("gpt_neox.embed_in.weight", (0,)),
        ("embed_out.weight", (3,)),
        ("model.project_in.weight", (0,)),
        ("model.project_out.weight", (3,)),
        ("model.word_embeddings_layernorm.weight", (0, 1, 2, 3)),
        ("model.final_layernorm.weight", (3,)),
        ("transformer.output_layer.weight", (3,)),
        ("model.tok_embeddings.weight", (0,)),
        ("rwkv.ln_out.weight", (3,)),
        ("score.weight", (3,)),
        ("mtp.layers.0.mlp.weight", (3,)),
        ("model.visual.blocks.0.weight", (0,)),
        ("multi_modal_projector.linear_1.weight", (0,)),
        ("lm_head.qweight", (3,)),
        ("model.embed_tokens.output_scale", (0,)),
        ("model.some_buffer", (0, 1, 2, 3)),
        ("model.hyper_connection_mixer.input_mix.weight", (3,)),
        ("cls.predictions.transform.dense.weight", (3,)),
        ("model.per_layer_projection_norm.weight", (0,)),
        ("model.encoder.layers.1.output.dense.weight", (0, 1, 2, 3)),
        ("talker.lm_head.weight", (3,)),
    ],
)
def test_the_words_of_a_name_determine_its_side(name: str, stages: tuple[int, ...]) -> None:
    structure = infer({**llama(), name: ("BF16", (4, 4))})
    assert stages_of(structure, name) == stages


def test_companions_of_a_quantised_tensor_go_with_its_layer() -> None:
    parts = ("qweight", "qzeros", "scales", "g_idx", "weight_scale")
    of_one = {f"mlp.up_proj.{part}": ("U8", (4, 4)) for part in parts}
    structure = infer({**llama(), **layered("model.layers", 4, of_one)})
    assert all(stages_of(structure, name) == (2,) for name in layered("model.layers", 3, of_one) if ".2." in name)


def test_experts_belong_to_their_layer_by_the_first_number() -> None:
    of_one = {f"mlp.experts.{expert}.w1.weight": LARGE for expert in range(8)}
    structure = infer({**llama(), **layered("model.layers", 4, of_one)})
    assert stages_of(structure, "model.layers.3.mlp.experts.0.w1.weight") == (3,)


# Tied embeddings: decided from checkpoint and config together.


@pytest.mark.parametrize("stated", [True, False, None])
@pytest.mark.parametrize("head", [True, False])
def test_a_missing_head_means_tied_and_a_config_can_tie_a_head_that_is_there(stated: bool | None, head: bool) -> None:
    more = {} if stated is None else {"tie_word_embeddings": stated}
    structure = infer(llama(tied=not head), llama_config(**more))
    tied = not head or stated is True
    assert stages_of(structure, "model.embed_tokens.weight") == ((0, 3) if tied else (0,))
    assert bool(structure.notes) == (not head and stated is False)
    assignment = assign(structure, even_partition(4, 2))
    assert set(assignment.shared) == ({"model.embed_tokens.weight"} if tied else set())


@pytest.mark.parametrize(("outer", "inner", "tied"), [(True, False, True), (False, True, True), (False, None, False)])
def test_either_config_of_a_composite_model_can_tie(outer: bool, inner: bool | None, tied: bool) -> None:
    text = llama_config() if inner is None else llama_config(tie_word_embeddings=inner)
    structure = infer(llama(), {"tie_word_embeddings": outer, "text_config": text})
    assert stages_of(structure, "model.embed_tokens.weight") == ((0, 3) if tied else (0,))


def test_one_stage_shares_nothing() -> None:
    assignment = assign(infer(llama(tied=True)), even_partition(4, 1))
    assert assignment.shared == {}
    assert set(assignment.stages[0]) == set(llama(tied=True))


def test_the_companions_of_a_tied_embedding_go_to_the_same_stages() -> None:
    kinds = {**llama(tied=True), "model.embed_tokens.scales": ("BF16", (VOCAB, 1))}
    assert stages_of(infer(kinds), "model.embed_tokens.scales") == (0, 3)


def test_the_bias_of_a_tied_head_is_no_head() -> None:
    structure = infer({**llama(tied=True), "lm_head.bias": ("BF16", (VOCAB,))})
    assert stages_of(structure, "model.embed_tokens.weight") == (0, 3)
    assert stages_of(structure, "lm_head.bias") == (3,)


def test_a_head_is_known_by_its_shape_where_the_config_names_no_vocabulary() -> None:
    kinds = {**llama(tied=True), "model.output_layer.weight": EMBED}
    structure = infer(kinds, {"num_layers": 4, "padded_vocab_size": VOCAB})
    assert stages_of(structure, "model.embed_tokens.weight") == (0,)


def test_a_projection_out_is_no_head() -> None:
    projections: Kinds = {
        "model.project_in.weight": ("BF16", (HIDDEN, 4)),
        "model.project_out.weight": ("BF16", (4, HIDDEN)),
    }
    kinds = {**llama(tied=True), **projections}
    assert stages_of(infer(kinds), "model.embed_tokens.weight") == (0, 3)


def test_of_several_embeddings_the_vocabularys_is_tied() -> None:
    kinds = {**llama(tied=True), "model.embed_positions.weight": ("BF16", (VOCAB, HIDDEN))}
    kinds["model.embed_other.weight"] = ("BF16", (VOCAB, 2 * HIDDEN))
    structure = infer(kinds)
    assert stages_of(structure, "model.embed_tokens.weight") == (0, 3)
    assert stages_of(structure, "model.embed_positions.weight") == (0,)


def test_a_tie_that_could_be_either_is_refused() -> None:
    message = refusal({**llama(tied=True), "model.embed_more.weight": EMBED})
    assert "model.embed_more or model.embed_tokens" in message


def test_neither_head_nor_embedding_is_refused() -> None:
    assert "neither an LM head nor an embedding" in refusal(layered("model.layers", 4))


# The decoder among groups of the same count.

VISION = {"model.vision_tower.embed.weight": LARGE, **layered("model.vision_tower.layers", 4)}


def test_a_tower_of_the_same_count_is_not_the_decoder() -> None:
    structure = infer({**llama(root="model.language_model."), **VISION})
    assert structure.layer_prefix == "model.language_model.layers"
    assert all(stages_of(structure, name) == (0,) for name in VISION)


def test_a_tower_alone_is_no_decoder() -> None:
    assert "no group of tensors is numbered 0 to 3" in refusal({"lm_head.weight": EMBED, **VISION})


def test_a_group_below_the_text_model_is_preferred() -> None:
    kinds = {**llama(root="language_model."), **layered("other.layers", 4, {"norm.weight": NORM, "out.bias": NORM})}
    assert infer(kinds).layer_prefix == "language_model.layers"


def test_two_decoders_are_refused_by_name() -> None:
    message = refusal({**llama(), **layered("second.layers", 4)})
    assert "model.layers or second.layers" in message


def test_parts_beside_the_text_model_feed_it_if_the_config_describes_images() -> None:
    kinds = {**llama(root="language_model."), "mlp1.1.weight": LARGE}
    assert stages_of(infer(kinds, llama_config(vision_config={"depth": 2})), "mlp1.1.weight") == (0,)
    assert "mlp1.1.weight" in refusal(kinds)


def test_a_second_stack_that_uses_the_decoders_caches_is_refused() -> None:
    """As published: the action expert of PI0."""
    kinds = {**llama(root="vlm.language_model.model."), **layered("expert.model.layers", 3)}
    assert "expert.model.layers.0" in refusal(kinds, {"text_config": llama_config(), "vision_config": {"depth": 2}})


def test_a_large_tensor_of_no_known_side_is_refused_by_name() -> None:
    assert "model.mystery.weight (BF16 [1024, 1024])" in refusal({**llama(), "model.mystery.weight": LARGE})


# Layers past the last, and layers that are not there.


def test_prediction_layers_past_the_last_go_to_the_last_stage() -> None:
    kinds = {**llama(5), "model.layers.4.shared_head.head.weight": EMBED}
    structure = infer(kinds, llama_config(4, num_nextn_predict_layers=1))
    assert structure.roles["model.layers.4.mlp.up_proj.weight"].side is Side.EXTRA
    assert stages_of(structure, "model.layers.4.mlp.up_proj.weight") == (3,)


def test_a_prediction_layers_head_does_not_untie() -> None:
    kinds = {**llama(5, tied=True), "model.layers.4.shared_head.head.weight": EMBED, "mtp.lm_head.weight": EMBED}
    structure = infer(kinds, llama_config(4, num_nextn_predict_layers=1))
    assert stages_of(structure, "model.embed_tokens.weight") == (0, 3)


@pytest.mark.parametrize(
    ("held", "said"),
    [(1, "found: model.layers 0 to 0"), (3, "no tensor of layer 3"), (5, "the weights hold more: model.layers 0 to 4")],
)
def test_weights_of_another_layer_count_are_refused(held: int, said: str) -> None:
    assert said in refusal(llama(held), llama_config(4))


def test_a_missing_layer_is_refused() -> None:
    kinds = {name: kind for name, kind in llama().items() if ".layers.2." not in name}
    assert "model.layers holds no tensor of layer 2" in refusal(kinds)


def test_names_determine_the_layer_count_if_the_config_does_not() -> None:
    """As published: LLaVA-1.5's text_config refers to another model and has no values of its own."""
    kinds = {**llama(root="language_model.model."), **layered("vision_tower.vision_model.encoder.layers", 3)}
    config = {"text_config": {"model_type": "llama", "vocab_size": VOCAB}, "vision_config": {"num_hidden_layers": 3}}
    structure = infer(kinds, config)
    assert (structure.layer_prefix, structure.num_layers) == ("language_model.model.layers", 4)
    assert "config.json does not state" in structure.notes[0]


def test_an_unknown_layer_count_is_refused_if_names_are_ambiguous() -> None:
    message = refusal({**llama(), **layered("second.layers", 3)}, {"model_type": "llama"})
    assert "does not state the number of layers" in message
    assert "model.layers or second.layers" in message
    assert "does not state the number of layers" in refusal({"lm_head.weight": EMBED}, {"model_type": "llama"})


def test_prediction_layers_are_not_counted_if_names_determine_the_count() -> None:
    kinds = {**llama(5), "model.layers.4.eh_proj.weight": LARGE, "model.layers.4.enorm.weight": NORM}
    structure = infer(kinds, {"model_type": "llama"})
    assert structure.num_layers == 4
    assert structure.roles["model.layers.4.eh_proj.weight"].side is Side.EXTRA


def test_a_prediction_layer_is_recognised_by_its_modules() -> None:
    kinds = {**llama(5), "model.layers.4.eh_proj.weight": LARGE, "model.layers.4.enorm.weight": NORM}
    assert stages_of(infer(kinds, llama_config(4)), "model.layers.4.mlp.up_proj.weight") == (3,)
    assert "model.layers 0 to 4" in refusal(llama(5), llama_config(4))


@pytest.mark.parametrize(
    "stated",
    [{"n_layer": 4}, {"layers_block_type": ["mamba"] * 4}, {"decoder_layers": 4}, {"num_transformer_layers": 4}],
)
def test_the_layer_count_by_its_other_names(stated: dict[str, Any]) -> None:
    assert infer(llama(), stated).num_layers == 4
    assert "the weights hold more" in refusal(llama(5), stated)


def test_the_layers_of_a_tower_are_not_taken_for_the_decoders() -> None:
    towers = {"vision_config": {"num_hidden_layers": 3}, "audio_config": {"num_hidden_layers": 3}}
    assert infer(llama(), {"text_config": {"vocab_size": VOCAB}, **towers}).num_layers == 4
    assert infer(llama(), {"text_config": llama_config(), **towers}).num_layers == 4


def test_encoder_decoder_models_are_refused() -> None:
    assert "encoder-decoder" in refusal(llama(), llama_config(is_encoder_decoder=True))
    blip2_with_t5 = {"text_config": llama_config(is_encoder_decoder=True), "vision_config": {"num_hidden_layers": 4}}
    assert "encoder-decoder" in refusal(llama(), blip2_with_t5)
    heard_by_whisper = {"text_config": llama_config(), "audio_config": {"is_encoder_decoder": True}}
    assert infer(llama(), heard_by_whisper).num_layers == 4


def test_prediction_tensors_can_be_dropped() -> None:
    kinds = {**llama(5), "mtp.fc.weight": LARGE}
    structure = infer(kinds, llama_config(4, num_nextn_predict_layers=1))
    assignment = assign(structure, even_partition(4, 2), drop_prediction=True)
    assert set(assignment.dropped) == {name for name in kinds if ".layers.4." in name} | {"mtp.fc.weight"}
    held = {name for names in assignment.stages for name in names}
    assert held == kinds.keys() - assignment.dropped.keys()


def test_shared_experts_are_nothing_special() -> None:
    kinds = {**llama(), "model.layers.1.shared_expert.weight": LARGE, "model.layers.1.shared_mlp.weight": LARGE}
    assert assign(infer(kinds), even_partition(4, 2)).stages


def test_ranges_of_another_model_are_refused() -> None:
    with pytest.raises(ZppError, match="end at 3, the model has 4"):
        assign(infer(llama()), even_partition(3, 2))


# Whatever the model: every tensor is assigned, and a layer's only to its owner.


@st.composite
def models(draw: st.DrawFn) -> tuple[Kinds, dict[str, Any], int]:
    layers = draw(st.integers(1, 9))
    root = draw(st.sampled_from(["", "model.", "transformer.", "gpt.", "model.language_model.", "model.decoder."]))
    group = draw(st.sampled_from(["layers", "h", "blocks", "layer_list"]))
    extra = draw(st.integers(0, 2))
    inside = ["attn.weight", "mlp.0.weight", "norm.bias", "e.3.w", "rope.inv_freq"]
    parts = draw(st.lists(st.sampled_from(inside), min_size=2, unique=True))
    kinds: Kinds = layered(f"{root}{group}", layers + extra, dict.fromkeys(parts, NORM))
    outside = ["norm.weight", "wpe.weight", "rotary_emb.inv_freq", "embed_norm.weight", "odd"]
    kinds |= dict.fromkeys([root + name for name in draw(st.lists(st.sampled_from(outside), unique=True))], NORM)
    kinds |= {f"{root}embed_tokens.weight": EMBED}
    beside = ["lm_head.weight", "vision_tower.proj.weight", "mtp.fc.weight"]
    kinds |= dict.fromkeys(draw(st.lists(st.sampled_from(beside), unique=True)), EMBED)
    if draw(st.booleans()):
        kinds |= layered("visual.blocks", draw(st.sampled_from([layers, 2])))
    kinds = {name: kinds[name] for name in draw(st.permutations(list(kinds)))}
    return kinds, llama_config(layers, num_nextn_predict_layers=extra), draw(st.integers(1, layers))


@settings(deadline=None)
@given(models())
def test_every_tensor_is_assigned(model: tuple[Kinds, dict[str, Any], int]) -> None:
    kinds, config, num_stages = model
    index = index_of(kinds, config)
    structure = infer_structure(index)
    partition = resolve_partition(config["num_hidden_layers"], num_stages)
    assignment = assign(structure, partition)
    held = [name for names in assignment.stages for name in names]
    assert set(held) == set(kinds)
    assert {name for name in held if held.count(name) > 1} == set(assignment.shared)
    assert all(assignment.shared.values())
    prefix = structure.layer_prefix + "."
    for stage, names in enumerate(assignment.stages):
        assert len(names) == len(set(names))
        assert [tensor.name for tensor in stage_tensors(index, partition, stage)] == list(names)
        for name in names:
            if name.startswith(prefix):
                layer = min(int(name[len(prefix) :].split(".")[0]), config["num_hidden_layers"] - 1)
                assert partition[stage].start <= layer < partition[stage].end
