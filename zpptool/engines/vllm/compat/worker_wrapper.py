# SPDX-License-Identifier: Apache-2.0
"""vLLM's worker: one process on one device."""

from __future__ import annotations

from vllm.v1.worker.worker_base import WorkerWrapperBase

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat.engine_config import VllmConfig

__all__ = ["WorkerWrapperBase", "make_worker"]


def make_worker(config: VllmConfig, spec: StageSpec, rank: int, store: str) -> WorkerWrapperBase:
    """The platform's worker for one tensor-parallel rank of a stage. Its device is not initialised yet.

    `parallel_config.rank` decides which layers a worker counts as its own (`get_layers_start_end_indices`).
    `global_rank` decides which of the head's KV cache configurations, one for each stage, it takes.

    Args:
        config: the engine's configuration on this stage.
        spec: the stage.
        rank: the tensor-parallel rank, from 0; also the device's index.
        store: URL of the file through which the stage's ranks find each other.
    """
    config.parallel_config.rank = spec.stage * spec.tensor_parallel_size + rank
    wrapper = WorkerWrapperBase(rpc_rank=0, global_rank=spec.stage)
    wrapper.init_worker(
        [
            {
                "vllm_config": config,
                "local_rank": rank,
                "rank": config.parallel_config.rank,
                "distributed_init_method": store,
                "is_driver_worker": rank == 0,
            }
        ]
    )
    return wrapper
