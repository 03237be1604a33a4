# SPDX-License-Identifier: Apache-2.0
"""The model runner that vLLM uses with a configuration. The environment decides, and features: some require V2."""

from __future__ import annotations

from vllm.config import VllmConfig

from zpptool.config.runner_choice import VARIABLE
from zpptool.errors import usage_error


def runner_kind(config: VllmConfig) -> str:
    """`V1` or `V2`."""
    return "V2" if config.use_v2_model_runner else "V1"


def require_v1_runner(config: VllmConfig) -> None:
    """Refuse a configuration with which vLLM uses its V2 model runner.

    Raises:
        ZppError: (USAGE) vLLM would use V2.
    """
    if runner_kind(config) != "V1":
        raise usage_error(
            "with these arguments vLLM uses its V2 model runner, which zpptool does not support yet",
            f"Set {VARIABLE}=0. Where that is set already, leave out the feature that requires V2 (watermarking does).",
        )
