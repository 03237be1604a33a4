# SPDX-License-Identifier: Apache-2.0
"""One stage's worker process: an unmodified vLLM worker, driven by the calls that come round the ring.

Started as `python -m zpptool.engines.vllm.worker SPEC`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput

from zpptool.engines.base import run_stage_worker
from zpptool.engines.vllm import codec, hooks, loader
from zpptool.engines.vllm.agreement import agreed_facts
from zpptool.engines.vllm.executor import EXECUTE_AND_SAMPLE, RingExecutor
from zpptool.engines.vllm.group import WirePipelineGroup
from zpptool.errors import ZppError
from zpptool.pipeline.ring.control import Call
from zpptool.pipeline.ring.node import StageNode
from zpptool.pipeline.ring.place import say
from zpptool.pipeline.spec import StageSpec

WORKER_METHODS = frozenset(
    {
        "add_lora", "compile_or_warm_up_model", "determine_available_memory", "execute_dummy_batch",
        "execute_model", "get_kv_cache_spec", "get_supported_kv_cache_layouts", "get_supported_tasks",
        "initialize_from_config", "list_loras", "pin_lora", "profile", "remove_lora", "reset_encoder_cache",
        "reset_mm_cache", "sample_tokens", "set_kv_cache_layout", "sleep", "supports_draft_weight_updates",
        "synchronize_device", "take_draft_token_ids", "update_max_model_len", "wake_up",
    }
)  # fmt: skip
"""What the head may ask of a vLLM worker; anything else is refused by name."""


class StageWorker:
    """A vLLM worker at one place of the ring.

    Args:
        spec: its place and what it loads.
        node: its links, open.
    """

    def __init__(self, spec: StageSpec, node: StageNode) -> None:
        self._spec = spec
        self._node = node
        hooks.prepare_environment(spec)
        self._config = hooks.engine_config(hooks.serve_arguments(spec, RingExecutor))
        loader.use_own_tensors(self._config, spec)
        self._worker: Any = None

    def agreed(self) -> dict[str, str]:
        """What has to be the same on every stage."""
        return agreed_facts(self._spec, self._config)

    def do(self, call: Call, payload: bytes) -> bytes:
        """Call the worker's method that the head names."""
        args, kwargs = codec.decode(payload)
        answer = self._method(call.method)(*args, **kwargs)
        return codec.encode(answer) if call.from_all or self._spec.is_last else b""

    def load_model(self) -> None:
        """Set up the device and read this stage's weights."""
        group = WirePipelineGroup(self._node, self._spec.num_stages)
        self._worker = hooks.make_worker(self._config, self._spec.stage)
        with hooks.pipeline_group(group):
            self._worker.init_device()
        self._say(f"loading layers {self._spec.layers} from {self._spec.model}")
        self._worker.load_model()
        hooks.current_platform.update_block_size_for_backend(self._config)
        self._say("loaded")

    def initialize_from_config(self, kv_cache_configs: list[Any]) -> None:
        """Allocate this stage's KV cache."""
        self._worker.initialize_from_config(kv_cache_configs)
        if not self._spec.is_first:
            hooks.set_empty_intermediate_tensors(self._worker, self._config)

    def execute_and_sample(self, scheduler_output: SchedulerOutput, grammar_output: GrammarOutput | None) -> Any:
        """One step: the forward pass of this stage's layers and, on the last stage, its tokens."""
        output = self._worker.execute_model(scheduler_output)
        return self._worker.sample_tokens(grammar_output) if output is None else output

    def _method(self, name: str) -> Callable[..., Any]:
        if name in ("load_model", "initialize_from_config", EXECUTE_AND_SAMPLE):
            return getattr(self, name)
        if name not in WORKER_METHODS:
            raise ZppError(f"{name} is not supported across stages")
        return getattr(self._worker, name)

    def _say(self, text: str) -> None:
        say(f"stage {self._spec.stage}", text)


if __name__ == "__main__":
    run_stage_worker(StageWorker)
