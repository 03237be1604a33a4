# SPDX-License-Identifier: Apache-2.0
"""Tensor names of published model families, and which of four stages needs each tensor.

`L` is replaced by the number of each of the four layers, `T` by that of each of four tower blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LAYERS = 4


@dataclass(frozen=True)
class Published:
    """A checkpoint: its config without sizes, its layers, and the names outside them by the stages that need them."""

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
    "llama, a quantised embedding that is the head too": Published(
        "model.layers", "mlp.up_proj.weight mlp.up_proj.weight.absmax", "", "model.norm.weight",
        "model.embed_tokens.weight model.embed_tokens.weight.absmax model.embed_tokens.weight.quant_map "
        "model.embed_tokens.weight.quant_state.bitsandbytes__nf4",
    ),
    "llama, AWQ with a quantised head": Published(
        "model.layers", "mlp.up_proj.qweight mlp.up_proj.qzeros mlp.up_proj.scales", "model.embed_tokens.weight",
        "model.norm.weight lm_head.qweight lm_head.qzeros lm_head.scales",
    ),
    "llama, MLX": Published(
        "model.layers", "mlp.up_proj.weight mlp.up_proj.scales mlp.up_proj.biases", "", "model.norm.weight",
        "model.embed_tokens.weight model.embed_tokens.scales model.embed_tokens.biases",
    ),
    "deepseek-v4 by its own names": Published(
        "layers", "attn.wq_a.weight attn.wq_a.scale attn.attn_sink hc_attn_fn ffn.gate.tid2eid ffn.experts.0.w1.weight",
        "embed.weight",
        "norm.weight head.weight hc_head_fn hc_head_base mtp.0.e_proj.weight mtp.0.enorm.weight mtp.0.attn.wq_a.weight",
        config={"num_hidden_layers": LAYERS, "num_nextn_predict_layers": 1},
    ),
    "glm-4.5v": Published(
        "model.language_model.layers", LLAMA,
        "model.language_model.embed_tokens.weight model.visual.blocks.T.attn.qkv.weight model.visual.downsample.weight "
        "model.visual.embeddings.position_embedding.weight model.visual.merger.proj.weight",
        "model.language_model.norm.weight lm_head.weight model.language_model.layers.4.eh_proj.weight "
        "model.language_model.layers.4.embed_tokens.weight model.language_model.layers.4.shared_head.norm.weight",
        config={**TEXT, **VISION},
    ),
    "step-3.5, three layers that predict": Published(
        "model.layers", LLAMA, "model.embed_tokens.weight",
        "model.norm.weight lm_head.weight model.layers.4.eh_proj.weight model.layers.5.eh_proj.weight "
        "model.layers.6.eh_proj.weight model.layers.6.transformer.shared_head.output.weight",
        config={"num_hidden_layers": LAYERS, "num_nextn_predict_layers": 3},
    ),
    "ernie-4.5": Published(
        "model.layers", "mlp.moe_statics.e_score_correction_bias mlp.experts.0.up_proj.weight", "",
        "model.norm.weight model.mtp_block.0.mlp.up_proj.weight model.mtp_emb_norm.0.weight "
        "model.mtp_linear_proj.0.weight",
        "model.embed_tokens.weight", config={"num_hidden_layers": LAYERS, "tie_word_embeddings": True},
    ),
    "longcat-flash": Published(
        "model.layers", "self_attn.0.q_a_proj.weight self_attn.1.q_a_proj.weight mlp.router.classifier.weight",
        "model.embed_tokens.weight",
        "model.norm.weight lm_head.weight model.mtp.layers.0.eh_proj.weight model.mtp.embed_tokens.weight "
        "model.mtp.norm.weight",
        config={"num_layers": LAYERS, "num_nextn_predict_layers": 1},
    ),
    "gpt-oss": Published(
        "model.layers", "mlp.experts.gate_up_proj_blocks mlp.experts.gate_up_proj_scales self_attn.sinks",
        "model.embed_tokens.weight", "model.norm.weight lm_head.weight",
    ),
    "phi-4-multimodal": Published(
        "model.layers", "self_attn.qkv_proj.base_layer.weight self_attn.qkv_proj.lora_A.vision.weight",
        "model.embed_tokens_extend.image_embed.img_processor.encoder.layers.T.mlp.fc1.weight "
        "model.embed_tokens_extend.image_embed.img_projection.0.weight model.embed_tokens_extend.image_embed.glb_GN "
        "model.embed_tokens_extend.audio_embed.encoder.encoders.T.feed_forward_in.net.2.weight "
        "model.embed_tokens_extend.audio_embed.audio_projection.speech.0.weight",
        "model.norm.weight", "model.embed_tokens.weight",
    ),
    "llava as first published": Published(
        "model.layers", LLAMA,
        "model.embed_tokens.weight model.mm_projector.0.weight model.image_newline "
        "model.vision_tower.vision_tower.vision_model.encoder.layers.T.mlp.fc1.weight",
        "model.norm.weight lm_head.weight",
    ),
    "mllama": Published(
        "language_model.model.layers", "cross_attn.q_proj.weight cross_attn_attn_gate mlp.up_proj.weight",
        "language_model.model.embed_tokens.weight vision_model.transformer.layers.T.mlp.fc1.weight "
        "vision_model.global_transformer.layers.T.mlp.fc1.weight vision_model.class_embedding "
        "multi_modal_projector.weight",
        "language_model.model.norm.weight language_model.lm_head.weight",
        config={**TEXT, "vision_config": {"num_hidden_layers": LAYERS, "num_global_layers": LAYERS}},
    ),
    "opt-350m": Published(
        "model.decoder.layers", "self_attn.q_proj.weight fc1.weight",
        "model.decoder.embed_positions.weight model.decoder.project_in.weight", "model.decoder.project_out.weight",
        "model.decoder.embed_tokens.weight",
    ),
    "qwen3-embedding": Published("layers", LLAMA, "", "norm.weight", "embed_tokens.weight"),
    "a classifier": Published("model.layers", LLAMA, "model.embed_tokens.weight", "model.norm.weight score.weight"),
    "mimo": Published(
        "model.layers", LLAMA, "model.embed_tokens.weight",
        "model.norm.weight lm_head.weight model.mtp_layers.0.input_proj.weight model.mtp_layers.0.final_norm.weight",
        config={"num_hidden_layers": LAYERS, "num_nextn_predict_layers": 1},
    ),
}  # fmt: skip
