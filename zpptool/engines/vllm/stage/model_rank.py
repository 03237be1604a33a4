# SPDX-License-Identifier: Apache-2.0
"""One device of a stage: an unmodified vLLM worker, and its methods that the head may call.

A stage on one device has one of these. A tensor-parallel stage has one in each of its processes, and all of them do the
same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import vllm

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.device_memory import await_device_memory
from zpptool.engines.vllm.calls import EXECUTE_AND_SAMPLE, RESTORE_REQUESTS, SET_FEATURES, LiveRequest
from zpptool.engines.vllm.compat import env_variables, model_runner, platform, towers
from zpptool.engines.vllm.compat.arguments import serve_arguments
from zpptool.engines.vllm.compat.control_objects import GrammarOutput, SchedulerOutput
from zpptool.engines.vllm.compat.cpu_lora import fix_adapter_products
from zpptool.engines.vllm.compat.engine_config import engine_config, kv_heads, set_tensor_parallel_size
from zpptool.engines.vllm.compat.faulty_classes import refuse_faulty_class
from zpptool.engines.vllm.compat.kv_cache import KVCacheConfig, KVCacheSpec
from zpptool.engines.vllm.compat.process_groups import (
    ReplacementGroup,
    pipeline_group,
    resting_neighbours,
    unlink_shared_memory,
)
from zpptool.engines.vllm.compat.unsupported import refuse_scores_on_a_stage, vllms_refusal
from zpptool.engines.vllm.compat.v2_runner import receive_buffers, settled
from zpptool.engines.vllm.compat.worker_wrapper import make_worker
from zpptool.engines.vllm.core.executor import RingExecutor
from zpptool.engines.vllm.stage import loader, tp_kv_cache
from zpptool.engines.vllm.stage.runner import Runner, runner_of
from zpptool.errors import ZppError
from zpptool.log import place_logger

WORKER_METHODS = frozenset(
    {
        "add_lora", "execute_dummy_batch", "get_simple_cpu_offload_num_cpu_blocks",
        "get_supported_kv_cache_layouts", "get_supported_tasks", "list_loras", "pin_lora", "profile", "remove_lora",
        "reset_encoder_cache", "reset_mm_cache", "set_kv_cache_layout", "sleep",
        "supports_draft_weight_updates", "synchronize_device", "take_draft_token_ids", "update_max_model_len",
        "wake_up",
    }
)  # fmt: skip
"""The methods of a vLLM worker that the head may call. Any other is refused by name."""
OWN_METHODS = frozenset(
    {
        "initialize_from_config",
        "get_kv_cache_spec",
        "determine_available_memory",
        "compile_or_warm_up_model",
        "execute_model",
        "sample_tokens",
        EXECUTE_AND_SAMPLE,
        RESTORE_REQUESTS,
        SET_FEATURES,
    }
)
"""The methods of `StageRank` that the head may call."""


class StageRank:
    """A vLLM worker: one of a stage's tensor-parallel ranks.

    Args:
        spec: the stage.
        rank: its rank in the stage, from 0.
        store: URL of the file through which torch.distributed of the stage's ranks find each other.

    Attributes:
        config: the engine's configuration on this rank.
        worker: vLLM's `WorkerWrapperBase`; None until `load`.
    """

    def __init__(self, spec: StageSpec, rank: int, store: str) -> None:
        self._spec = spec
        self._rank = rank
        self._store = store
        self._log = place_logger(__name__, spec.stage)
        env_variables.set_layer_partition(spec)
        env_variables.reuse_compiled_code()
        arguments = serve_arguments(spec, RingExecutor)
        if spec.tensor_parallel_size > 1:
            set_tensor_parallel_size(arguments, spec.tensor_parallel_size)
        self.config = engine_config(arguments)
        refuse_faulty_class(self.config.model_config.architectures, spec.num_stages, vllm.__version__)
        if spec.is_first and not spec.headless:
            refuse_scores_on_a_stage(self.config.model_config.score_type, arguments.enable_flash_late_interaction)
        loader.use_own_tensors(self.config, spec)
        self.worker: Any = None
        self._group: ReplacementGroup | None = None
        self._runner: Runner | None = None
        self._heads_factor = 1

    def method(self, name: str) -> Callable[..., Any]:
        """The method for a call of that name.

        Raises:
            ZppError: it may not be called on a stage.
        """
        if name in OWN_METHODS:
            own: Callable[..., Any] = getattr(self, name)
            return own
        if name not in WORKER_METHODS:
            raise ZppError(f"{name} is not supported across stages")
        of_worker: Callable[..., Any] = getattr(self.worker, name)
        return of_worker

    @property
    def runner(self) -> Runner:
        """The model runner.

        Raises:
            ZppError: the stage has not loaded.
        """
        if self._runner is None:
            raise ZppError("this stage has no model yet")
        return self._runner

    def load(self, group: ReplacementGroup) -> None:
        """Initialise the device, with `group` as its pipeline group, and read the weights."""
        self._group = group
        self._await_memory()
        group.max_rows = self.config.scheduler_config.max_num_batched_tokens
        self.worker = make_worker(self.config, self._spec, self._rank, self._store)
        with pipeline_group(group, self._rank):
            self.worker.init_device()
        self._runner = runner_of(self.worker, self.config)
        if not self._spec.is_first:
            towers.leave_out_towers()
            towers.run_no_encoder(self.worker)
        unlink_shared_memory(self._store)
        if self._rank == 0:
            self._log.info("loading layers %s from %s", self._spec.layers, self._spec.model)
        if self.config.lora_config is not None:
            fix_adapter_products()
        try:
            self.worker.load_model()
        except ImportError as cause:
            refusal = vllms_refusal(cause)
            if refusal is None:
                raise
            raise refusal from cause
        platform.update_block_size(self.config)
        if self._rank == 0:
            self._log.info("loaded")

    def _await_memory(self) -> None:
        """Wait until this rank's GPU has the memory that vLLM requires to be free, which the process that this one
        replaces may still hold."""
        share: float = self.config.cache_config.gpu_memory_utilization
        device = torch.device(platform.device_type(), self._rank)
        await_device_memory(device, lambda memory: int(memory.total * share), self._log)

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """What each layer of this stage needs of the cache, as if one device held all heads."""
        specs = self.worker.get_kv_cache_spec()
        self._heads_factor = tp_kv_cache.heads_factor(specs, *kv_heads(self.config))
        return tp_kv_cache.as_whole(specs, self._heads_factor)

    def determine_available_memory(self) -> int:
        """Bytes for the cache, as if one device held all heads."""
        available: int = self.worker.determine_available_memory()
        return available * self._heads_factor

    def initialize_from_config(self, kv_cache_configs: list[KVCacheConfig]) -> None:
        """Allocate the cache.

        Args:
            kv_cache_configs: for each stage, the cache that the head laid out.
        """
        own_shares = [tp_kv_cache.as_share(config, self._heads_factor) for config in kv_cache_configs]
        self.worker.initialize_from_config(own_shares)
        self.runner.cache_is_allocated(is_first=self._spec.is_first)

    def compile_or_warm_up_model(self) -> Any:
        """Compile, warm up and capture, without the other stages: only a stage that starts does so."""
        with resting_neighbours(lambda: receive_buffers(self.worker)):
            return self.worker.compile_or_warm_up_model()

    def execute_and_sample(self, scheduler_output: SchedulerOutput, grammar_output: GrammarOutput | None) -> Any:
        """One step: the forward pass of this stage's layers and, on the last stage, its tokens."""
        output = self.execute_model(scheduler_output)
        return self.sample_tokens(grammar_output) if output is None else output

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """The forward pass of this stage's layers. Its output is None where tokens are to be sampled."""
        assert self._group is not None
        self.runner.before_step(scheduler_output)
        with self._group.step_of(scheduler_output.total_num_scheduled_tokens):
            return settled(self.worker.execute_model(scheduler_output))

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:
        """The tokens of the step whose forward pass was computed last."""
        with self.runner.sampling():
            return settled(self.worker.sample_tokens(grammar_output))

    def restore_requests(self, requests: list[LiveRequest]) -> None:
        """Forget every request, and have these known, with nothing of them computed."""
        self.runner.restore(requests)

    def set_features(self, features: dict[str, list[Any]]) -> None:
        """Take the images of requests again, by request. A request that this stage does not know is about to be
        restored, with its images."""
        known = model_runner.model_runner_of(self.worker).requests
        for name in features.keys() & known.keys():
            known[name].mm_features = features[name]
