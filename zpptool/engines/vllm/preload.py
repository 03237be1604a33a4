# SPDX-License-Identifier: Apache-2.0
"""What a spare process does beyond the imports, before it knows its part: what all stages of a model do, and its head.

The invariants: no device is touched, for which one it may see is told only with the part; and nothing is computed, for
what becomes a head forks, and threads that compute do not survive that.
"""

from __future__ import annotations

import importlib
from contextlib import suppress

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat import access as hooks
from zpptool.engines.vllm.core.executor import RingExecutor

IMPORTED_LATE = ("vllm.model_executor.layers.quantization.online.base",)
"""What vLLM imports only when it loads, whatever the model. Where it is not, nothing is lost but time."""


def preload(like: StageSpec) -> None:
    """Have vLLM import what it imports late.

    Args:
        like: a stage of the pipeline.
    """
    hooks.prepare_environment(like)
    config = hooks.engine_config(hooks.serve_arguments(like, RingExecutor))
    worker = config.parallel_config.worker_cls.rpartition(".")[0]  # of the platform; see workermodules.py
    for name in (worker, *IMPORTED_LATE):
        with suppress(ImportError):
            importlib.import_module(name)
