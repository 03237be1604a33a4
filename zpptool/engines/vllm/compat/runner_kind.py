# SPDX-License-Identifier: Apache-2.0
"""The model runner that vLLM uses with a configuration. The environment decides, and features: some require V2."""

from __future__ import annotations

from vllm.config import VllmConfig

from zpptool.errors import usage_error
from zpptool.ring.messages import FITS_ALL

V1, V2 = "V1", "V2"


def runner_kind(config: VllmConfig) -> str:
    """`V1` or `V2`."""
    return V2 if config.use_v2_model_runner else V1


def graph_mode(config: VllmConfig) -> str:
    """Which steps a stage replays from captured CUDA graphs, and of how many tokens.

    A stage that captures none, on a CPU for example, fits beside any other: only rows of scheduled tokens are sent.
    """
    compilation = config.compilation_config
    mode = getattr(compilation.cudagraph_mode, "name", None) or "NONE"
    if mode == "NONE":
        return FITS_ALL
    return f"{mode.lower()} of {','.join(map(str, compilation.cudagraph_capture_sizes or ()))} tokens"


def refuse_diffusion(config: VllmConfig) -> None:
    """Refuse a diffusion model, which V2 alone runs: it computes several tokens of a sequence in a step.

    Raises:
        ZppError: (USAGE) the model is one.
    """
    if config.model_config.is_diffusion:
        raise usage_error(
            "this model computes several tokens of a sequence at once, which does not work across stages",
            "Run it unsplit.",
        )
