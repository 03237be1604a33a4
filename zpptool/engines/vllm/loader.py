# SPDX-License-Identifier: Apache-2.0
"""A vLLM model loader that reads a stage's own tensors and nothing else.

vLLM's default loader opens every shard and skips a missing layer's tensors only after it has read them. This one asks
the checkpoint's headers which tensors the stage owns; the model's own `load_weights` does the rest, as ever.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from zpptool.checkpoint.loading import load_plan
from zpptool.engines.weights import read_tensor
from zpptool.pipeline.phases import loading_teller
from zpptool.pipeline.spec import StageSpec

LOAD_FORMAT = "zpptool"
_REPLACED_FORMATS = ("auto", "hf", "safetensors")
"""The ways of loading that this one stands in for; any other was asked for by the user and stays."""


class OwnTensorsLoader(DefaultModelLoader):
    """Loads the tensors of one stage, from its own directory or from the full checkpoint."""

    spec: StageSpec

    def get_all_weights(self, model_config: ModelConfig, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """The stage's tensors by their names in the checkpoint."""
        tensors = load_plan(self.spec.directory, self.spec.stage, self.spec.ranges)
        have_read = loading_teller(sum(tensor.nbytes for tensor in tensors))
        for tensor in tensors:
            yield tensor.name, read_tensor(tensor)
            have_read(tensor.nbytes)


def use_own_tensors(config: VllmConfig, stage_spec: StageSpec) -> None:
    """Have the worker of `config` load with `OwnTensorsLoader`, unless the user asked for another way of loading."""
    if config.load_config.load_format not in _REPLACED_FORMATS:
        return

    @register_model_loader(LOAD_FORMAT)
    class StageLoader(OwnTensorsLoader):
        """The loader of this process's one stage: vLLM makes loaders itself and tells them only their format."""

        spec = stage_spec

    config.load_config.load_format = LOAD_FORMAT
