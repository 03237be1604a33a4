# SPDX-License-Identifier: Apache-2.0
"""Sets the requests of a stage to those that the head has, and nothing else.

After the loss of a stage, the stages may differ: a restarted stage knows no request, and another may know tokens that
never reached the head. So every stage forgets all requests and registers them again: the prompt, the parameters and the
tokens that the head has accepted. The KV cache is computed again.

vLLM's own step forgets and registers, so that vLLM derives from a request what it always derives (positions of images,
a seeded generator, pooling states). A seeded generator is then drawn from once for each accepted token, by the sampler
itself, so that the next draw is the one that an undisturbed run would have made.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from zpptool.engines.vllm.calls import LiveRequest
from zpptool.engines.vllm.compat.control_objects import NewRequestData, SchedulerOutput
from zpptool.engines.vllm.compat.model_runner import drop_pending_step, model_runner_of, update_states
from zpptool.engines.vllm.compat.process_groups import is_last_stage


@torch.inference_mode()
def restore_requests(worker: Any, requests: list[LiveRequest]) -> None:
    """Forget every request that a stage knows, and register these, with nothing of them computed.

    It runs in inference mode, like vLLM's own steps: what vLLM makes during a step (the mask of `allowed_token_ids`,
    for example) is an inference tensor, which torch allows to be written to in that mode only.

    Args:
        worker: the stage's vLLM worker.
        requests: all that the head has scheduled before. They are resumed as vLLM resumes a preempted request.
    """
    runner = model_runner_of(worker)
    drop_pending_step(runner)
    known = set(runner.requests)
    runner.reset_encoder_cache()
    update_states(runner, dataclasses.replace(SchedulerOutput.make_empty(), finished_req_ids=known))
    for request, answer in requests:
        _register(runner, request, answer)
    update_states(runner, SchedulerOutput.make_empty())


def _register(runner: Any, request: NewRequestData, answer: list[int]) -> None:
    name = request.req_id
    step = dataclasses.replace(
        SchedulerOutput.make_empty(),
        scheduled_new_reqs=[request],
        num_scheduled_tokens={name: 1},
        total_num_scheduled_tokens=1,
    )
    update_states(runner, step)
    state = runner.requests[name]
    state.output_token_ids = list(answer)
    if answer:
        runner.num_prompt_logprobs.pop(name, None)  # they were delivered with the first token
    if state.generator is not None and is_last_stage():
        _draw(runner, state.generator, len(answer))


def _draw(runner: Any, generator: torch.Generator, times: int) -> None:
    """Have the sampler draw from a request's generator as often as it has sampled a token for it."""
    logits = torch.zeros(1, runner.input_batch.vocab_size, device=runner.device)
    for _ in range(times):
        runner.sampler.topk_topp_sampler(logits.clone(), {0: generator}, None, None)
