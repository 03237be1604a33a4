# SPDX-License-Identifier: Apache-2.0
"""The calls between vLLM's head and its stages that are more than a worker's method of the same name."""

from __future__ import annotations

from zpptool.engines.vllm.compat.control_objects import NewRequestData

SET_UP_METHODS = frozenset(
    {
        "load_model", "get_kv_cache_spec", "get_supported_kv_cache_layouts", "set_kv_cache_layout",
        "determine_available_memory", "initialize_from_config", "compile_or_warm_up_model", "update_max_model_len",
        "get_supported_tasks", "supports_draft_weight_updates", "get_simple_cpu_offload_num_cpu_blocks",
    }
)  # fmt: skip
"""The calls that set up a stage. The ring repeats them, in order, on a stage that was restarted. The calls that load
adapters are repeated with `RESTORE_REQUESTS` instead."""
RESTORE_REQUESTS = "restore_requests"
"""Forget all requests and register the live ones; not a method of vLLM's workers."""
SET_FEATURES = "set_features"
"""Take a request's images again, all of them; not a method of vLLM's workers."""
EXECUTE_AND_SAMPLE = "execute_and_sample"
"""The forward pass of a step and the sampling of its tokens in one call; not a method of vLLM's workers."""
LiveRequest = tuple[NewRequestData, list[int]]
"""A request as it was when it was new, and the tokens of its answer so far."""
