# SPDX-License-Identifier: Apache-2.0
"""The facts that must be equal on the head and on every stage of vLLM, read from each process's own configuration."""

from __future__ import annotations

import vllm

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.base import common_facts
from zpptool.engines.vllm.compat.engine_config import VllmConfig
from zpptool.engines.vllm.compat.runner_kind import graph_mode, runner_kind


def agreed_facts(spec: StageSpec, config: VllmConfig) -> dict[str, str]:
    """The values that this process uses, by name. The head refuses a pipeline in which they differ."""
    model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
    return {
        **common_facts(spec),
        "engine": f"vllm {vllm.__version__}",
        "model runner": runner_kind(config),
        "CUDA graphs": graph_mode(config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_model_len": str(model.max_model_len),
        "max_num_batched_tokens": str(scheduler.max_num_batched_tokens),
        "max_num_seqs": str(scheduler.max_num_seqs),
        "block_size": str(cache.block_size),
        "kv_cache_dtype": str(cache.cache_dtype),
        "quantization": str(model.quantization),
        "logprobs_mode": str(model.logprobs_mode),
        "LoRA": str(config.lora_config is not None),
    }
