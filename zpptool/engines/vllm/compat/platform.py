# SPDX-License-Identifier: Apache-2.0
"""The platform that the installed vLLM was built for."""

from __future__ import annotations

from vllm.platforms import current_platform

from zpptool.engines.vllm.compat.engine_config import VllmConfig


def device_type() -> str:
    """torch's name for the platform's device, for example `cuda` or `cpu`."""
    kind: str = current_platform.device_type
    return kind


def is_cpu() -> bool:
    """Whether vLLM computes on the CPU."""
    result: bool = current_platform.is_cpu()
    return result


def update_block_size(config: VllmConfig) -> None:
    """Set the KV cache's block size to one that the platform's attention backend supports."""
    current_platform.update_block_size_for_backend(config)
