# SPDX-License-Identifier: Apache-2.0
"""A vLLM model without weights: every layer is there with its shapes, and nothing is read or allocated.

That is enough to ask the model's layers what they need of the KV cache, whatever the size of the model.
"""

from __future__ import annotations

import torch
from torch import nn

from zpptool.engines.vllm.compat.engine_config import ModelConfig, VllmConfig
from zpptool.engines.vllm.compat.model_loader import DefaultModelLoader, register_model_loader

LOAD_FORMAT = "zpptool-weightless"


def leave_out_weights(config: VllmConfig) -> None:
    """Have the worker of `config` build its model on torch's meta device, and load nothing."""

    @register_model_loader(LOAD_FORMAT)
    class WeightlessLoader(DefaultModelLoader):
        """Makes the modules of a model and gives them no memory."""

        def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
            """The model, with all parameters on the meta device; or where its code reads values of tensors that it
            makes (ALiBi's slopes), in memory of the host that nothing is written to, which takes none."""
            try:
                return self._made_on("meta", vllm_config, model_config, prefix)
            except NotImplementedError:
                vllm_config.compilation_config.static_forward_context.clear()
                return self._made_on("cpu", vllm_config, model_config, prefix)

        def _made_on(self, device: str, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str) -> nn.Module:
            before = torch.get_default_dtype()
            torch.set_default_dtype(model_config.dtype)
            try:
                with torch.device(device):
                    model: nn.Module = self.create_model(vllm_config, model_config, prefix)
            finally:
                torch.set_default_dtype(before)
            return model.eval()

    config.load_config.load_format = LOAD_FORMAT
