# SPDX-License-Identifier: Apache-2.0
"""One device of a stage: an unmodified vLLM worker, and what may be asked of it by name.

A stage of one device has one of these; a tensor-parallel stage has one in each of its processes, and all of them do the
same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.calls import EXECUTE_AND_SAMPLE, RESTORE_REQUESTS, LiveRequest
from zpptool.engines.vllm.compat import access as hooks
from zpptool.engines.vllm.compat import cpu_lora as adapters
from zpptool.engines.vllm.compat.unsupported import refuse_scores_on_a_stage
from zpptool.engines.vllm.core.executor import RingExecutor
from zpptool.engines.vllm.stage import loader
from zpptool.engines.vllm.stage import tp_kv_cache as kvshare
from zpptool.engines.vllm.stage.restore import restore_requests
from zpptool.errors import ZppError
from zpptool.log import say

WORKER_METHODS = frozenset(
    {
        "add_lora", "compile_or_warm_up_model", "execute_dummy_batch", "execute_model",
        "get_simple_cpu_offload_num_cpu_blocks",
        "get_supported_kv_cache_layouts", "get_supported_tasks", "list_loras", "pin_lora", "profile", "remove_lora",
        "reset_encoder_cache", "reset_mm_cache", "set_kv_cache_layout", "sleep",
        "supports_draft_weight_updates", "synchronize_device", "take_draft_token_ids", "update_max_model_len",
        "wake_up",
    }
)  # fmt: skip
"""What the head may ask of a vLLM worker; anything else is refused by name."""
OWN_METHODS = frozenset(
    {
        "initialize_from_config",
        "get_kv_cache_spec",
        "determine_available_memory",
        "sample_tokens",
        EXECUTE_AND_SAMPLE,
        RESTORE_REQUESTS,
    }
)
"""What is asked of this class, which asks the worker."""


class StageRank:
    """A vLLM worker at one place of the ring, one of its tensor-parallel ranks.

    Args:
        spec: the stage.
        rank: its rank in the stage, from 0.
        store: where the ranks of the stage meet, for torch.distributed.
    """

    def __init__(self, spec: StageSpec, rank: int, store: str) -> None:
        self._spec = spec
        self._rank = rank
        self._store = store
        hooks.prepare_environment(spec)
        hooks.keep_what_is_compiled()
        arguments = hooks.serve_arguments(spec, RingExecutor)
        if spec.tensor_parallel_size > 1:
            hooks.share_among(arguments, spec.tensor_parallel_size)
        self.config = hooks.engine_config(arguments)
        if spec.is_first and not spec.headless:
            refuse_scores_on_a_stage(self.config.model_config.score_type, arguments.enable_flash_late_interaction)
        loader.use_own_tensors(self.config, spec)
        self.worker: Any = None
        self._factor = 1

    def method(self, name: str) -> Callable[..., Any]:
        """What to call for a call of that name.

        Raises:
            ZppError: it may not be asked of a stage.
        """
        if name in OWN_METHODS:
            own: Callable[..., Any] = getattr(self, name)
            return own
        if name not in WORKER_METHODS:
            raise ZppError(f"{name} is not supported across stages")
        asked: Callable[..., Any] = getattr(self.worker, name)
        return asked

    def load(self, group: Any) -> None:
        """Set up the device, with `group` for its pipeline group, and read the weights."""
        self.worker = hooks.make_worker(self.config, self._spec, self._rank, self._store)
        with hooks.pipeline_group(group, self._rank):
            self.worker.init_device()
        hooks.unname_shared_memory(self._store)
        if self._rank == 0:
            self._say(f"loading layers {self._spec.layers} from {self._spec.model}")
        if self.config.lora_config is not None:
            adapters.mend_products()
        self.worker.load_model()
        hooks.current_platform.update_block_size_for_backend(self.config)
        if self._rank == 0:
            self._say("loaded")

    def get_kv_cache_spec(self) -> dict[str, Any]:
        """What each layer of this stage wants of the cache, as if one device held all heads."""
        specs = self.worker.get_kv_cache_spec()
        self._factor = kvshare.heads_factor(specs, *hooks.kv_heads(self.config))
        return kvshare.as_whole(specs, self._factor)

    def determine_available_memory(self) -> int:
        """Bytes for the cache, as if one device held all heads."""
        available: int = self.worker.determine_available_memory()
        return available * self._factor

    def initialize_from_config(self, kv_cache_configs: list[Any]) -> None:
        """Allocate the cache."""
        self.worker.initialize_from_config([kvshare.as_share(config, self._factor) for config in kv_cache_configs])
        if not self._spec.is_first:
            hooks.set_empty_intermediate_tensors(self.worker, self.config)

    def execute_and_sample(self, scheduler_output: SchedulerOutput, grammar_output: GrammarOutput | None) -> Any:
        """One step: the forward pass of this stage's layers and, on the last stage, its tokens."""
        output = self.worker.execute_model(scheduler_output)
        return self.sample_tokens(grammar_output) if output is None else output

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:
        """The tokens of the step whose forward pass was computed last."""
        with hooks.discarded_rows_draw_nothing(self.worker):
            return self.worker.sample_tokens(grammar_output)

    def restore_requests(self, requests: list[LiveRequest]) -> None:
        """Forget every request, and take in these, none of them computed."""
        restore_requests(self.worker, requests)

    def _say(self, text: str) -> None:
        say(f"stage {self._spec.stage}", text)
