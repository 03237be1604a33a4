# SPDX-License-Identifier: Apache-2.0
"""engines/vllm/calls."""

from __future__ import annotations

from vllm.v1.core.sched.output import NewRequestData

SET_UP_METHODS = frozenset(
    {
        "load_model", "get_kv_cache_spec", "get_supported_kv_cache_layouts", "set_kv_cache_layout",
        "determine_available_memory", "initialize_from_config", "compile_or_warm_up_model", "update_max_model_len",
        "get_supported_tasks", "supports_draft_weight_updates", "get_simple_cpu_offload_num_cpu_blocks",
    }
)  # fmt: skip
"""What a stage has to have done, or been asked, to compute; adapters are told again with the live requests."""


RESTORE_REQUESTS = "restore_requests"
"""The stages' own name for forgetting all requests and taking in those that are live."""


EXECUTE_AND_SAMPLE = "execute_and_sample"
"""The two calls of a step in one: the stages' own name for it, no method of vLLM's workers."""


LiveRequest = tuple[NewRequestData, list[int]]
"""A request as it was when it was new, and the tokens of its answer so far."""
