# SPDX-License-Identifier: Apache-2.0
"""Environment variables that vLLM reads, as zpptool sets them."""

from __future__ import annotations

import os

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat.platform import is_cpu
from zpptool.partition import vllm_layer_partition

PARTITION_VARIABLE = "VLLM_PP_LAYER_PARTITION"
"""The number of layers of each stage, separated by commas."""
MULTIPROCESSING_VARIABLE = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""0 has `vllm.LLM` run its engine core in the process of the script."""


def set_layer_partition(spec: StageSpec) -> None:
    """Set the partition in this process. vLLM reads it whenever it builds or counts layers."""
    os.environ[PARTITION_VARIABLE] = vllm_layer_partition(spec.ranges)


def clear_layer_partition() -> None:
    """Undo `set_layer_partition` in a process that may build another engine."""
    os.environ.pop(PARTITION_VARIABLE, None)


def reuse_compiled_code() -> None:
    """Have a restarted stage find what it has compiled before, unless the user has set the variable.

    On a CPU vLLM 0.32 saves whole artifacts that it then cannot load ("'function' object has no attribute
    'finalize_loading'"), and compiles again at every start. Without them inductor's own cache is used.
    """
    if is_cpu():
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")


def runs_engine_core_in_process() -> bool:
    """Whether the user has asked for an engine core in the process of the script."""
    return os.environ.get(MULTIPROCESSING_VARIABLE) == "0"
