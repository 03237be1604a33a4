# SPDX-License-Identifier: Apache-2.0
"""The model runner that vLLM uses with a configuration. The environment decides, and features: some require V2."""

from __future__ import annotations

from vllm.config import VllmConfig

from zpptool.config.runner_choice import VARIABLE
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


def refuse_model(config: VllmConfig) -> None:
    """Refuse a model that stages do not support with the runner that vLLM uses.

    These are diffusion models, which V2 alone runs and which compute several tokens of a sequence in a step, and, with
    V2, models that take images.

    Raises:
        ZppError: (USAGE) the model is one of these.
    """
    model = config.model_config
    if model.is_diffusion:
        raise usage_error(
            "this model computes several tokens of a sequence at once, which does not work across stages",
            "Run it unsplit.",
        )
    if runner_kind(config) == V2 and model.is_multimodal_model:
        raise usage_error(
            "models that take images do not run across stages with vLLM's V2 model runner",
            f"Set {VARIABLE}=0: vLLM then uses its V1 model runner.",
        )
