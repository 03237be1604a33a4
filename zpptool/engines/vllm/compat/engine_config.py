# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine configuration. The head and every stage make it from the same arguments and get the same one."""

from __future__ import annotations

import argparse

from vllm.config import ModelConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext

from zpptool.engines.vllm.compat.runner_kind import refuse_model
from zpptool.engines.vllm.compat.unsupported import vllms_refusal

__all__ = ["ModelConfig", "VllmConfig", "engine_config", "kv_heads", "set_tensor_parallel_size"]


def engine_config(args: argparse.Namespace) -> VllmConfig:
    """The engine's configuration, made as vLLM's API server makes it.

    Raises:
        ZppError: (USAGE) vLLM refuses the arguments, with vLLM's message; or stages do not support the model.
    """
    arguments = AsyncEngineArgs.from_cli_args(args)
    try:
        config = arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except Exception as cause:
        refusal = vllms_refusal(cause)
        if refusal is None:
            raise
        raise refusal from cause
    refuse_model(config)
    return config


def set_tensor_parallel_size(args: argparse.Namespace, size: int) -> None:
    """Have `size` devices share the computation that `args` describe.

    vLLM's default limits of a batch grow with the number of devices. The limits of a single device are kept, because
    the head schedules within them and does not know how many devices a stage has.
    """
    scheduler = engine_config(args).scheduler_config
    args.max_num_batched_tokens = scheduler.max_num_batched_tokens
    args.max_num_seqs = scheduler.max_num_seqs
    args.tensor_parallel_size = size


def kv_heads(config: VllmConfig) -> tuple[int, int]:
    """The number of key-value heads of the model, and of one tensor-parallel rank."""
    model = config.model_config
    return model.get_total_num_kv_heads(), model.get_num_kv_heads(config.parallel_config)
