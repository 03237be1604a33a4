# SPDX-License-Identifier: Apache-2.0
"""The parts of a vision-language model that turn an image into embeddings: its towers and projectors.

Stage 0 runs them. vLLM builds them on every pipeline rank, and would refuse to start where their weights are missing.
It has a way to leave them out, for requests of text alone: where the limit of a modality is zero, the modules that a
model marks as that modality's tower become placeholders without memory or weights. A later stage uses that, and takes
requests with images all the same: what it needs of an image (its place in the prompt, the grid of its patches) is in
the request.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

from vllm.model_executor.models.interfaces import SupportsMultiModal

from zpptool.engines.vllm.compat.worker_wrapper import WorkerWrapperBase

_NO_ITEMS: Any = SimpleNamespace(get_limit_per_prompt=lambda _modality: 0)
_CONFIG_WITHOUT_ITEMS: Any = SimpleNamespace(model_config=SimpleNamespace(get_multimodal_config=lambda: _NO_ITEMS))
"""What marking a tower reads of vLLM's configuration, where no prompt may have an item of any modality."""


def leave_out_towers() -> None:
    """Have every model that this process builds from now on leave its towers out."""
    stock = SupportsMultiModal._mark_tower_model
    if stock.__module__ == __name__:
        return

    def mark(
        model: Any, _config: Any, modalities: set[str] | str, *, targets: Any = None
    ) -> AbstractContextManager[None]:
        marking: AbstractContextManager[None] = stock(model, _CONFIG_WITHOUT_ITEMS, modalities, targets=targets)
        return marking

    SupportsMultiModal._mark_tower_model = mark


def run_no_encoder(worker: WorkerWrapperBase) -> None:
    """Keep a worker from running the towers, which it has not: vLLM does so in its dummy runs on every rank, and in
    steps on the first rank only."""
    worker.worker.model_runner.supports_mm_inputs = False
