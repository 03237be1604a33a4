# SPDX-License-Identifier: Apache-2.0
"""vLLM's process groups: one stage builds its own, and its pipeline group is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from vllm.distributed import parallel_state

from zpptool.engines.vllm.compat.engine_config import VllmConfig
from zpptool.engines.vllm.compat.platform import device_type
from zpptool.engines.vllm.compat.worker_modules import BUILDER, imported_worker_modules

SHARED_MEMORY = Path("/dev/shm")


class ReplacementGroup(Protocol):
    """A pipeline group that takes the place of vLLM's.

    Attributes:
        max_rows: how many rows the largest step has; set before `adopt`.
    """

    max_rows: int | None

    def adopt(self, alone: Any, device: torch.device | None) -> None:
        """Take over the group of one stage that vLLM built, and the device on which this stage computes."""
        ...

    def step_of(self, rows: int) -> AbstractContextManager[None]:
        """Within this context the worker does a step of so many tokens."""
        ...


@contextmanager
def pipeline_group(group: ReplacementGroup, tensor_parallel_rank: int) -> Iterator[None]:
    """While a worker initialises its device: let vLLM build its process groups for one stage alone, then put `group` in
    the place of its pipeline group.

    The function that builds them is bound by name in several modules. During the real call the configuration says that
    the pipeline has one stage, so that no stage waits for another; afterwards it has the real number of stages again.
    """
    modules = imported_worker_modules()
    real: Callable[..., None] = getattr(modules[0], BUILDER)

    def alone(config: VllmConfig, rank: int, init_method: str | None, local_rank: int, backend: str) -> None:
        parallel = config.parallel_config
        num_stages, world_size = parallel.pipeline_parallel_size, parallel.world_size
        parallel.pipeline_parallel_size, parallel.world_size = 1, parallel.tensor_parallel_size
        try:
            real(config, tensor_parallel_rank, init_method, local_rank, backend)
        finally:
            parallel.pipeline_parallel_size, parallel.world_size = num_stages, world_size
        group.adopt(parallel_state._PP, torch.device(device_type()))
        parallel_state._PP = group

    for module in modules:
        setattr(module, BUILDER, alone)
    try:
        yield
    finally:
        for module in modules:
            setattr(module, BUILDER, real)


class RestingGroup:
    """The pipeline group of a stage that computes without its neighbours.

    Args:
        group: the stage's group. Its place in the pipeline stays the same.
        buffers: returns the tensors that a receive returns: as many rows as a step can have, with any content.
    """

    def __init__(self, group: Any, buffers: Callable[[], dict[str, torch.Tensor]]) -> None:
        self._group = group
        self._buffers = buffers

    def isend_tensor_dict(self, tensor_dict: Any, **_options: Any) -> list[Any]:
        """Send nothing; returns no handles."""
        return []

    def irecv_tensor_dict(self, **_options: Any) -> tuple[dict[str, torch.Tensor], list[Any], list[Any]]:
        """Receive nothing; returns the buffers, no handles and no postprocessing."""
        return dict(self._buffers()), [], []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


@contextmanager
def resting_neighbours(buffers: Callable[[], dict[str, torch.Tensor]]) -> Iterator[None]:
    """While a stage warms up: let its steps neither send nor wait. V2's warm-up computes whole steps, and a stage that
    was restarted warms up alone, beside neighbours that wait for it.

    Args:
        buffers: see `RestingGroup`.
    """
    group = parallel_state._PP
    parallel_state._PP = RestingGroup(group, buffers)
    try:
        yield
    finally:
        parallel_state._PP = group


def tensor_parallel_group() -> Any:
    """The group of this stage's tensor-parallel ranks."""
    return parallel_state.get_tp_group()


def is_last_stage() -> bool:
    """Whether this process belongs to the last stage, which samples tokens."""
    last: bool = parallel_state.get_pp_group().is_last_rank
    return last


def unlink_shared_memory(store: str) -> None:
    """Remove the names of the memory that the ranks of a stage share on a CPU, once all ranks have mapped it. The
    kernel then frees it when the last rank ends, however that happens. (vLLM leaves the names behind.)"""
    for path in SHARED_MEMORY.glob(f"{Path(store).name}-*-cpushm_*"):
        path.unlink(missing_ok=True)
