# SPDX-License-Identifier: Apache-2.0
"""Names as published checkpoints have them, old ones and those of remote code too, each to its stage of four.

`L` stands for the number of each of the four layers, `T` for that of each of four tower blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.index import CheckpointIndex
from zpptool.checkpoint.structure import infer_structure
from zpptool.layers import even_partition

LAYERS = 4
EMBED, VECTOR, MATRIX = (48, 8), (8,), (4096, 4096)


@dataclass(frozen=True)
class Published:
    """A checkpoint: its config without sizes, its layers, and the names outside them by where they belong."""

    prefix: str
    inside: str
    first: str
    last: str
    both: str = ""
    every: str = ""
    config: dict[str, Any] = field(default_factory=lambda: {"num_hidden_layers": LAYERS})


VISION = {"vision_config": {"num_hidden_layers": LAYERS, "depth": LAYERS}}
TEXT = {"text_config": {"num_hidden_layers": LAYERS, "vocab_size": 48, "hidden_size": 8}}
LLAMA = "self_attn.q_proj.weight mlp.up_proj.weight input_layernorm.weight"

FAMILIES = {
    "llama with legacy rotary buffers": Published(
        "model.layers", f"{LLAMA} self_attn.rotary_emb.inv_freq", "model.embed_tokens.weight",
        "model.norm.weight lm_head.weight",
    ),
    "mixtral": Published(
        "model.layers", "block_sparse_moe.experts.0.w1.weight block_sparse_moe.gate.weight input_layernorm.weight",
        "model.embed_tokens.weight", "model.norm.weight lm_head.weight",
    ),
    "llama, GPTQ": Published(
        "model.layers", "mlp.up_proj.qweight mlp.up_proj.qzeros mlp.up_proj.scales mlp.up_proj.g_idx",
        "model.embed_tokens.weight", "model.norm.weight lm_head.weight",
    ),
    "llama, bitsandbytes": Published(
        "model.layers",
        "mlp.up_proj.weight mlp.up_proj.weight.absmax mlp.up_proj.weight.quant_map mlp.up_proj.weight.nested_absmax "
        "mlp.up_proj.weight.quant_state.bitsandbytes__nf4",
        "model.embed_tokens.weight", "model.norm.weight lm_head.weight",
    ),
    "deepseek-v3, FP8": Published(
        "model.layers", "mlp.experts.3.up_proj.weight mlp.experts.3.up_proj.weight_scale_inv self_attn.kv_b_proj.bias",
        "model.embed_tokens.weight",
        "model.norm.weight lm_head.weight model.layers.4.eh_proj.weight model.layers.4.embed_tokens.weight "
        "model.layers.4.shared_head.head.weight model.layers.4.enorm.weight",
        config={"num_hidden_layers": LAYERS, "num_nextn_predict_layers": 1},
    ),
    "gpt2": Published("h", "attn.c_attn.weight attn.bias ln_1.weight", "wpe.weight", "ln_f.weight", "wte.weight",
                      config={"n_layer": LAYERS}),
    "bloom": Published(
        "h", "self_attention.dense.weight input_layernorm.weight", "", "ln_f.weight", "word_embeddings.weight",
        "word_embeddings_layernorm.weight", config={"n_layer": LAYERS},
    ),
    "falcon": Published(
        "transformer.h", "self_attention.dense.weight input_layernorm.weight", "transformer.word_embeddings.weight",
        "transformer.ln_f.weight lm_head.weight",
    ),
    "gpt-j": Published(
        "transformer.h", "attn.q_proj.weight attn.masked_bias ln_1.weight", "transformer.wte.weight",
        "transformer.ln_f.weight lm_head.weight lm_head.bias", config={"n_layer": LAYERS},
    ),
    "gpt-neox": Published(
        "gpt_neox.layers", "attention.dense.weight attention.rotary_emb.inv_freq", "gpt_neox.embed_in.weight",
        "gpt_neox.final_layer_norm.weight embed_out.weight",
    ),
    "mpt": Published(
        "transformer.blocks", "attn.Wqkv.weight norm_1.weight", "", "transformer.norm_f.weight",
        "transformer.wte.weight",
        config={"n_layers": LAYERS},
    ),
    "dbrx": Published(
        "transformer.blocks", "ffn.experts.mlp.v1 ffn.router.layer.weight norm_attn_norm.norm_1.weight",
        "transformer.wte.weight", "transformer.norm_f.weight lm_head.weight", config={"n_layers": LAYERS},
    ),
    "chatglm": Published(
        "transformer.encoder.layers", "self_attention.query_key_value.weight input_layernorm.weight",
        "transformer.embedding.word_embeddings.weight",
        "transformer.encoder.final_layernorm.weight transformer.output_layer.weight",
        every="transformer.rotary_pos_emb.inv_freq", config={"num_layers": LAYERS, "padded_vocab_size": 48},
    ),
    "qwen v1": Published(
        "transformer.h", "attn.c_attn.weight mlp.w1.weight ln_1.weight", "transformer.wte.weight",
        "transformer.ln_f.weight lm_head.weight",
    ),
    "qwen-vl v1": Published(
        "transformer.h", "attn.c_attn.weight mlp.w1.weight ln_1.weight",
        "transformer.wte.weight transformer.visual.transformer.resblocks.T.attn.out_proj.weight "
        "transformer.visual.attn_pool.ln_q.weight transformer.visual.ln_post.weight transformer.visual.proj",
        "transformer.ln_f.weight lm_head.weight", config={"num_hidden_layers": LAYERS, "visual": {"layers": LAYERS}},
    ),
    "internlm2": Published(
        "model.layers", "attention.wqkv.weight feed_forward.w1.weight ffn_norm.weight", "model.tok_embeddings.weight",
        "model.norm.weight output.weight",
    ),
    "phi, remote code": Published(
        "transformer.h", "mixer.Wqkv.weight ln.weight", "transformer.embd.wte.weight",
        "lm_head.ln.weight lm_head.linear.weight", config={"n_layer": LAYERS},
    ),
    "openelm": Published(
        "transformer.layers", "attn.qkv_proj.weight ffn_norm.weight", "", "transformer.norm.weight",
        "transformer.token_embeddings.weight", config={"num_transformer_layers": LAYERS},
    ),
    "mamba": Published(
        "backbone.layers", "mixer.A_log mixer.in_proj.weight norm.weight", "", "backbone.norm_f.weight",
        "backbone.embedding.weight", config={"n_layer": LAYERS},
    ),
    "nemotron-h": Published(
        "backbone.layers", "mixer.in_proj.weight norm.weight", "backbone.embeddings.weight",
        "backbone.norm_f.weight lm_head.weight",
    ),
    "jamba": Published(
        "model.layers", "mamba.in_proj.weight feed_forward.experts.1.down_proj.weight", "model.embed_tokens.weight",
        "model.final_layernorm.weight lm_head.weight",
    ),
    "rwkv": Published(
        "rwkv.blocks", "attention.key.weight ln1.weight", "rwkv.embeddings.weight", "rwkv.ln_out.weight head.weight"
    ),
    "qwen3-next with a prediction part": Published(
        "model.layers", "linear_attn.in_proj_qkvz.weight mlp.experts.1.up_proj.weight mlp.shared_expert.up_proj.weight",
        "model.embed_tokens.weight",
        "model.norm.weight lm_head.weight mtp.fc.weight mtp.layers.0.self_attn.q_proj.weight mtp.norm.weight",
    ),
    "gemma3n": Published(
        "model.language_model.layers", LLAMA,
        "model.language_model.embed_tokens_per_layer.weight model.language_model.per_layer_model_projection.weight "
        "model.language_model.per_layer_projection_norm.weight model.language_model.altup_projections.0.weight "
        "model.vision_tower.timm_model.blocks.0.0.conv_exp.weight model.audio_tower.conformer.T.attention.post.weight "
        "model.embed_vision.embedding.weight model.embed_audio.embedding_post_projection_norm.weight",
        "model.language_model.norm.weight model.language_model.altup_unembed_projections.0.weight",
        "model.language_model.embed_tokens.weight", config={**TEXT, **VISION},
    ),
    "llava-1.5": Published(
        "language_model.model.layers", LLAMA,
        "language_model.model.embed_tokens.weight multi_modal_projector.linear_1.weight "
        "vision_tower.vision_model.encoder.layers.T.mlp.fc1.weight vision_tower.vision_model.post_layernorm.weight",
        "language_model.model.norm.weight language_model.lm_head.weight",
        config={"text_config": {"model_type": "llama", "vocab_size": 48}, **VISION},
    ),
    "pixtral": Published(
        "language_model.model.layers", LLAMA,
        "language_model.model.embed_tokens.weight vision_tower.transformer.layers.T.attention.k_proj.weight "
        "vision_tower.ln_pre.weight multi_modal_projector.linear_2.weight",
        "language_model.model.norm.weight language_model.lm_head.weight", config={**TEXT, **VISION},
    ),
    "llama 4": Published(
        "language_model.model.layers", "feed_forward.experts.gate_up_proj feed_forward.router.weight",
        "language_model.model.embed_tokens.weight vision_model.model.layers.T.mlp.fc1.weight "
        "vision_model.layernorm_post.weight multi_modal_projector.linear_1.weight",
        "language_model.model.norm.weight language_model.lm_head.weight", config={**TEXT, **VISION},
    ),
    "qwen2-vl": Published(
        "model.layers", LLAMA,
        "model.embed_tokens.weight visual.blocks.T.attn.qkv.weight visual.merger.ln_q.weight visual.merger.mlp.0.bias",
        "model.norm.weight lm_head.weight", config={"num_hidden_layers": LAYERS, **VISION},
    ),
    "qwen2.5-omni": Published(
        "thinker.model.layers", LLAMA,
        "thinker.model.embed_tokens.weight thinker.visual.blocks.T.attn.q.weight "
        "thinker.audio_tower.layers.T.fc1.weight thinker.audio_tower.ln_post.weight",
        "thinker.model.norm.weight thinker.lm_head.weight talker.model.layers.T.mlp.up_proj.weight "
        "talker.codec_head.weight talker.model.norm.weight token2wav.code2wav_dit_model.transformer_blocks.T.ff.weight",
        config={"thinker_config": {**TEXT, **VISION}, "talker_config": {"num_hidden_layers": LAYERS}},
    ),
    "internvl": Published(
        "language_model.model.layers", LLAMA,
        "language_model.model.embed_tokens.weight vision_model.encoder.layers.T.attn.qkv.weight mlp1.0.weight "
        "mlp1.1.weight",
        "language_model.model.norm.weight language_model.lm_head.weight",
        config={"llm_config": {"num_hidden_layers": LAYERS, "vocab_size": 48, "hidden_size": 8}, **VISION},
    ),
    "internvl with internlm2": Published(
        "language_model.model.layers", "attention.wqkv.weight feed_forward.w1.weight",
        "language_model.model.tok_embeddings.weight vision_model.encoder.layers.T.attn.qkv.weight mlp1.1.weight",
        "language_model.model.norm.weight language_model.output.weight",
        config={"llm_config": {"num_hidden_layers": LAYERS, "vocab_size": 48, "hidden_size": 8}, **VISION},
    ),
    "minicpm-v": Published(
        "llm.model.layers", LLAMA,
        "llm.model.embed_tokens.weight vpm.encoder.layers.T.self_attn.out_proj.weight vpm.post_layernorm.weight "
        "resampler.attn.out_proj.weight resampler.ln_post.weight",
        "llm.model.norm.weight llm.lm_head.weight", config={"num_hidden_layers": LAYERS, **VISION},
    ),
    "deepseek-vl2": Published(
        "language.model.layers", LLAMA,
        "language.model.embed_tokens.weight vision.blocks.T.attn.qkv.weight vision.norm.weight "
        "projector.layers.0.weight image_newline",
        "language.model.norm.weight language.lm_head.weight",
        config={"language_config": {"num_hidden_layers": LAYERS, "vocab_size": 48, "hidden_size": 8}, **VISION},
    ),
    "kimi-vl": Published(
        "language_model.model.layers", "mlp.experts.3.up_proj.weight self_attn.kv_b_proj.weight",
        "language_model.model.embed_tokens.weight vision_tower.encoder.blocks.T.wqkv.weight "
        "vision_tower.encoder.final_layernorm.weight multi_modal_projector.pre_norm.weight",
        "language_model.model.norm.weight language_model.lm_head.weight", config={**TEXT, **VISION},
    ),
    "blip-2": Published(
        "language_model.model.decoder.layers", "self_attn.q_proj.weight fc1.weight",
        "language_model.model.decoder.embed_positions.weight vision_model.encoder.layers.T.mlp.fc1.weight "
        "qformer.encoder.layer.T.attention.output.dense.weight qformer.encoder.layer.T.output.LayerNorm.weight "
        "language_projection.weight query_tokens",
        "language_model.model.decoder.final_layer_norm.weight", "language_model.model.decoder.embed_tokens.weight",
        config={**TEXT, **VISION, "qformer_config": {"num_hidden_layers": LAYERS}},
    ),
    "molmo": Published(
        "model.transformer.blocks", "att_proj.weight ff_out.weight attn_norm.weight",
        "model.transformer.wte.embedding model.vision_backbone.image_vit.transformer.resblocks.T.attention.wo.weight",
        "model.transformer.ff_out.weight model.transformer.ln_f.weight",
    ),
    "granite-speech": Published(
        "language_model.model.layers", LLAMA,
        "language_model.model.embed_tokens.weight encoder.layers.T.attn.to_out.weight encoder.out.weight "
        "projector.qformer.encoder.layer.T.output.dense.weight",
        "language_model.model.norm.weight language_model.lm_head.weight",
        config={**TEXT, "encoder_config": {"num_layers": LAYERS}, "projector_config": {"num_hidden_layers": LAYERS}},
    ),
    "grok-1": Published(
        "transformer.decoder_layer", "moe.3.linear.weight rms_norm.weight", "",
        "transformer.norm.weight lm_head.weight", "transformer.in_out_embed.weight",
    ),
    "glm-4v": Published(
        "transformer.encoder.layers", "self_attention.dense.weight input_layernorm.weight",
        "transformer.embedding.word_embeddings.weight transformer.vision.transformer.layers.T.mlp.fc1.weight "
        "transformer.vision.linear_proj.norm1.weight transformer.vision.boi",
        "transformer.encoder.final_layernorm.weight transformer.output_layer.weight",
        config={"num_layers": LAYERS, **VISION},
    ),
    "qwen3-omni": Published(
        "thinker.model.layers", LLAMA,
        "thinker.model.embed_tokens.weight thinker.visual.blocks.T.attn.qkv.weight "
        "thinker.audio_tower.layers.T.fc1.weight thinker.visual.merger_list.0.ln_q.weight",
        "thinker.model.norm.weight thinker.lm_head.weight talker.model.layers.T.mlp.up_proj.weight "
        "talker.model.codec_embedding.weight talker.code_predictor.lm_head.0.weight talker.text_projection.fc1.weight "
        "code2wav.decoder.0.conv.weight code2wav.pre_transformer.layers.T.mlp.up_proj.weight",
        config={
            "thinker_config": {**TEXT, **VISION}, "talker_config": {"text_config": {"num_hidden_layers": LAYERS}},
            "code2wav_config": {"num_hidden_layers": LAYERS},
        },
    ),
    "minicpm-o": Published(
        "llm.model.layers", LLAMA,
        "llm.model.embed_tokens.weight apm.layers.T.fc1.weight apm.layer_norm.weight vpm.encoder.layers.T.fc1.weight "
        "audio_projection_layer.linear1.weight resampler.kv_proj.weight",
        "llm.model.norm.weight llm.lm_head.weight tts.model.layers.T.mlp.up_proj.weight tts.head_code.0.weight "
        "tts.projector.linear1.weight",
        config={"num_hidden_layers": LAYERS, **VISION, "tts_config": {"num_hidden_layers": LAYERS}},
    ),
    "deepseek-ocr": Published(
        "model.layers", LLAMA,
        "model.embed_tokens.weight model.sam_model.blocks.T.attn.qkv.weight model.sam_model.neck.0.weight "
        "model.vision_model.transformer.layers.T.mlp.fc1.weight model.vision_model.pre_layrnorm.weight "
        "model.projector.layers.weight model.image_newline",
        "model.norm.weight lm_head.weight",
        config={"num_hidden_layers": LAYERS, "language_config": {"num_hidden_layers": LAYERS}, **VISION},
    ),
    "chameleon": Published(
        "model.layers", LLAMA,
        "model.embed_tokens.weight model.vqmodel.encoder.norm_out.weight model.vqmodel.quantize.embedding.weight",
        "model.norm.weight lm_head.weight", config={"num_hidden_layers": LAYERS, "vq_config": {}},
    ),
    "ovis": Published(
        "llm.model.layers", LLAMA,
        "llm.model.embed_tokens.weight visual_tokenizer.backbone.encoder.layers.T.fc1.weight "
        "visual_tokenizer.head.0.weight vte.weight",
        "llm.model.norm.weight llm.lm_head.weight",
        config={"llm_config": TEXT["text_config"], "visual_tokenizer_config": {"num_hidden_layers": LAYERS}},
    ),
    "mimo": Published(
        "model.layers", LLAMA, "model.embed_tokens.weight",
        "model.norm.weight lm_head.weight model.mtp_layers.0.input_proj.weight model.mtp_layers.0.final_norm.weight",
        config={"num_hidden_layers": LAYERS, "num_nextn_predict_layers": 1},
    ),
}  # fmt: skip


def names_of(words: str, stand_in: str = "T") -> list[str]:
    """The names in `words`, numbers put in."""
    names = []
    for word in words.split():
        numbered = f".{stand_in}." in word
        names += [word.replace(f".{stand_in}.", f".{number}.") for number in range(LAYERS)] if numbered else [word]
    return names


def shape_of(name: str) -> tuple[int, ...]:
    """Vectors for norms, the vocabulary's shape for what embeds or scores, and a large matrix for all else."""
    words = name.replace(".", "_").split("_")
    if "norm" in name or {"ln", "freq", "bias"} & set(words):
        return VECTOR
    ends = ("embed", "embd", "wte", "wpe", "head", "output.weight", "output_layer", "transformer.ff_out")
    is_end = any(word in name for word in ends) and ".layers." not in name and "altup" not in name
    return EMBED if is_end else MATRIX


@pytest.mark.parametrize("name", FAMILIES)
def test_published_names_go_where_they_are_needed(name: str) -> None:
    family = FAMILIES[name]
    wanted = dict.fromkeys(names_of(family.first), (0,))
    wanted |= dict.fromkeys(names_of(family.last), (3,))
    wanted |= dict.fromkeys(names_of(family.both), (0, 3))
    wanted |= dict.fromkeys(names_of(family.every), (0, 1, 2, 3))
    for layer in range(LAYERS):
        wanted |= {f"{family.prefix}.{layer}.{name}": (layer,) for name in family.inside.split()}
    tensors = {}
    for tensor in wanted:
        shape = shape_of(tensor)
        nbytes = 64 * 2**20 if len(shape) > 1 else 16
        tensors[tensor] = TensorInfo(tensor, "BF16", shape, Path("model.safetensors"), 0, nbytes)
    config = {"vocab_size": 48, "hidden_size": 8, **family.config}
    structure = infer_structure(CheckpointIndex(Path("somewhere"), config, tensors, ()))
    assert structure.layer_prefix == family.prefix
    partition = even_partition(LAYERS, LAYERS)
    assert {tensor: structure.stages_of(tensor, partition) for tensor in tensors} == wanted
