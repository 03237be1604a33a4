# SPDX-License-Identifier: Apache-2.0
"""Which model runner a configuration of vLLM leads to. Beside the environment, features decide: some ask for V2."""

from __future__ import annotations

from vllm.config import VllmConfig

from zpptool.config.model_runner import VARIABLE
from zpptool.errors import usage_error


def runner_kind(config: VllmConfig) -> str:
    """`V1` or `V2`."""
    return "V2" if config.use_v2_model_runner else "V1"


def require_v1_runner(config: VllmConfig) -> None:
    """Refuse a configuration for which vLLM takes its V2 model runner.

    Raises:
        ZppError: (USAGE) it does.
    """
    if runner_kind(config) != "V1":
        raise usage_error(
            "with these arguments vLLM uses its V2 model runner, which zpptool does not carry yet",
            f"Set {VARIABLE}=0. Where that is set already, leave out the feature that asks for V2 (watermarking does).",
        )
