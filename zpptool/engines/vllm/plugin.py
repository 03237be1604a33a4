# SPDX-License-Identifier: Apache-2.0
"""The plugin that vLLM finds when zpptool is installed. It adds one load format and changes nothing else.

vLLM runs it in every process on the machine, so it must not affect a user who does not ask for it.
`vllm serve MODEL --load-format zpptool-own` has each rank of vLLM's own pipeline parallelism read its own tensors only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zpptool.engines.vllm.compat.engine_config import ModelConfig

LOAD_FORMAT = "zpptool-own"


def register() -> None:
    """Add the load format. Called by vLLM (`vllm.general_plugins`), possibly several times in one process."""
    from zpptool.engines.vllm.compat.model_loader import DefaultModelLoader, register_model_loader

    class OwnTensorsOfRank(DefaultModelLoader):
        """Reads the tensors of this rank's layers from the full checkpoint."""

        def get_all_weights(self, model_config: ModelConfig, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
            """The rank's tensors by their names in the checkpoint."""
            self.counter_before_loading_weights = time.perf_counter()
            yield from _own_tensors(Path(model_config.model))

    register_model_loader(LOAD_FORMAT)(OwnTensorsOfRank)


def _own_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of this process's place in vLLM's pipeline group.

    Raises:
        ZppError: (INVALID) the directory is no checkpoint that can be split.
    """
    from zpptool.checkpoint.stage_tensors import count_layers, load_plan
    from zpptool.engines.vllm.compat.model_loader import get_pp_group, get_pp_indices
    from zpptool.engines.weights import read_tensor
    from zpptool.partition import LayerRange

    group, layers = get_pp_group(), count_layers(directory)
    partition = tuple(LayerRange(*get_pp_indices(layers, rank, group.world_size)) for rank in range(group.world_size))
    for tensor in load_plan(directory, group.rank_in_group, partition):
        yield tensor.name, read_tensor(tensor)
