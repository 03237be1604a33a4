# SPDX-License-Identifier: Apache-2.0
"""vLLM's V2 model runner: what zpptool reads and changes of it.

vLLM imports that runner only where it is used, and so nothing of it is imported here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from zpptool.engines.vllm.compat.control_objects import SchedulerOutput
from zpptool.engines.vllm.compat.scheduler_tokens import SchedulerTokens
from zpptool.engines.vllm.compat.worker_wrapper import WorkerWrapperBase
from zpptool.errors import ZppError


def take_tokens_from_scheduler(worker: WorkerWrapperBase) -> SchedulerTokens:
    """Put the object that hands over the scheduler's tokens in the place of vLLM's `PPHandler`.

    Args:
        worker: its device is initialised, and its model is not loaded.

    Raises:
        ZppError: (FAILURE) the worker has another runner, or the model drafts tokens.
    """
    runner = worker.worker.model_runner
    if not hasattr(runner, "req_states"):
        raise ZppError(f"{type(runner).__module__} is not the V2 model runner that was configured")
    if runner.num_speculative_steps:
        raise ZppError(
            "vLLM's runner drafts tokens, which does not work across stages", "Leave speculative decoding out."
        )
    tokens = SchedulerTokens(runner.req_states, runner.device, is_last=runner.is_last_pp_rank)
    if runner.pp_handler is not None:
        runner.pp_handler = tokens
    return tokens


@torch.inference_mode()
def forget_requests(worker: WorkerWrapperBase) -> None:
    """Forget every request, and a forward pass whose tokens were never sampled.

    Nothing has to be registered again. V2's scheduler sends a request that is resumed with all its tokens, and from
    those the runner derives what it needs: penalties, budgets, positions. It draws a seeded request's random numbers
    from the seed and the token's position.
    """
    runner = worker.worker.model_runner
    runner.execute_model_state = None
    runner.reset_encoder_cache()
    known = set(runner.req_states.req_id_to_index)
    runner.finish_requests(dataclasses.replace(SchedulerOutput.make_empty(), finished_req_ids=known))


def settled(output: Any) -> Any:
    """The output of a step, once it is in host memory. V2 returns an object that copies it meanwhile."""
    return output.get_output() if hasattr(output, "get_output") else output


def receive_buffers(worker: WorkerWrapperBase) -> dict[str, torch.Tensor]:
    """The buffers into which a stage copies its input."""
    buffers: dict[str, torch.Tensor] = worker.worker.model_runner.intermediate_tensors.tensors
    return buffers
