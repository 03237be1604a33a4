# SPDX-License-Identifier: Apache-2.0
"""What a spare process imports in advance, beyond the worker and head modules: what all stages of a model need.

The invariants: no device is touched, because the devices that it may use are known only when it is assigned a stage;
and nothing is computed, because a process that becomes a head forks, and threads that compute do not survive a fork.
"""

from __future__ import annotations

import importlib
from contextlib import suppress

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat.arguments import serve_arguments
from zpptool.engines.vllm.compat.engine_config import engine_config
from zpptool.engines.vllm.compat.env_variables import set_layer_partition
from zpptool.engines.vllm.core.executor import RingExecutor

IMPORTED_LATE = ("vllm.model_executor.layers.quantization.online.base",)
"""Modules that vLLM imports only when it loads, whatever the model. Where one does not exist, only time is lost."""


def preload(like: StageSpec) -> None:
    """Have vLLM import what it imports late.

    Args:
        like: a stage of the pipeline.
    """
    set_layer_partition(like)
    config = engine_config(serve_arguments(like, RingExecutor))
    worker = config.parallel_config.worker_cls.rpartition(".")[0]  # of the platform; see compat/worker_modules.py
    for name in (worker, *IMPORTED_LATE):
        with suppress(ImportError):
            importlib.import_module(name)
