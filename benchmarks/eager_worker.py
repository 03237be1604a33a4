# SPDX-License-Identifier: Apache-2.0
"""Stock vLLM's CPU worker, with the buffers that vLLM 0.32 forgets when it runs a pipeline eagerly.

For vLLM's own pipeline in `pipeline.py`, which would die without (`assert self.intermediate_tensors is not None`): only
a compiled model is warmed up, and only the warm-up makes them. Named on its command line with `--worker-cls`.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.parallel_state import get_pp_group
from vllm.v1.worker.cpu_worker import CPUWorker


class EagerWorker(CPUWorker):
    """vLLM's worker, able to receive."""

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """As ever; then the buffers that a later stage copies its input into."""
        super().initialize_from_config(kv_cache_config)
        runner = self.model_runner
        if not get_pp_group().is_first_rank:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
