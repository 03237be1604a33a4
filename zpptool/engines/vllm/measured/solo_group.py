# SPDX-License-Identifier: Apache-2.0
"""The pipeline group of a stage that has no neighbours: it receives random tensors, and what it sends is dropped."""

from __future__ import annotations

from typing import Any

import torch

from zpptool.engines.vllm.compat.engine_config import VllmConfig
from zpptool.engines.vllm.compat.model_runner import intermediate_tensors
from zpptool.engines.vllm.compat.worker_wrapper import WorkerWrapperBase
from zpptool.engines.vllm.stage.pipeline_group import PipelinePlace

_SEED = 0


class SoloGroup(PipelinePlace):
    """Stands for the stages before and after this one. A step receives as many rows as it computes, or on a device that
    pads its steps all rows."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._received: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def prepare(self, worker: WorkerWrapperBase, config: VllmConfig) -> None:
        """Make the tensors that every step receives: random, because what experts a token goes to depends on them."""
        if self.is_first_rank:
            return
        made = intermediate_tensors(worker, config, config.scheduler_config.max_num_batched_tokens)
        generator = torch.Generator(device="cpu").manual_seed(_SEED)
        for name, tensor in made.items():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            self._received[name] = noise.to(tensor.device, tensor.dtype)

    def isend_tensor_dict(self, tensor_dict: dict[str, Any], **_options: Any) -> list[Any]:
        """Send nothing; returns no handles."""
        return []

    def irecv_tensor_dict(self, **_options: Any) -> tuple[dict[str, torch.Tensor], list[Any], list[Any]]:
        """The prepared tensors, without handles and postprocessing."""
        rows = None if self.device is not None and self.device.type != "cpu" else self._scheduled_rows
        return {name: tensor[:rows] for name, tensor in self._received.items()}, [], []
