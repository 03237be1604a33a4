# SPDX-License-Identifier: Apache-2.0
"""Divides running sequences and waiting prompts among the steps in flight, so that every stage has a step to compute.

vLLM's scheduler puts all that can be computed into one step. In a pipeline the sequences of that step are then in
flight together, the steps after it are empty, and all stages but one wait. With N stages this scheduler gives a step at
most an Nth of the running sequences, where that is faster (`batching_policy.py`). Where it is not, a step has all of
them: sequences that were in different steps wait for each other once, or each group would continue alone. While prompts
wait or are computed, a step has a chunk of them besides (`prefill_pacer.py`). Nothing else changes: which requests are
admitted and preempted, and in which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from zpptool.engines.vllm.compat.control_objects import ModelRunnerOutput, SchedulerOutput
from zpptool.engines.vllm.compat.scheduler_classes import EngineCoreOutputs, Request
from zpptool.engines.vllm.core.batching_policy import BatchingPolicy
from zpptool.engines.vllm.core.prefill_pacer import PrefillPacer
from zpptool.engines.vllm.core.prefill_share import Prompt
from zpptool.engines.vllm.core.prefix_hits import PrefixHits
from zpptool.engines.vllm.core.scheduler import RecoveringScheduler
from zpptool.engines.vllm.core.step_calls import LOST

MEASURED_EVERY = 16
"""Of the steps without prompt tokens, one in so many is measured: counting pairs takes time."""


class BalancedScheduler(RecoveringScheduler):
    """Survives the loss of a stage, and limits each step's token budget to an even share of what is to be computed.

    Running sequences are served before waiting ones, so a step that is to admit one has a budget beyond their share.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._full_budget: int = self.max_num_scheduled_tokens
        self._users_threshold: int = self.scheduler_config.long_prefill_token_threshold
        self._max_in_flight: int = self.vllm_config.max_concurrent_batches
        self._in_flight = 0
        self._failed_admission: tuple[int, int] | None = None
        self._empty_step = SchedulerOutput.make_empty()
        self._policy = BatchingPolicy(self._max_in_flight)
        self._pacer = PrefillPacer(self._max_in_flight)
        self._hits = PrefixHits()
        self._chunk_fits = True

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """The next step. While all sequences are in flight it is always the same empty object, which costs nothing to
        make and is not reported to the API; vLLM's own empty steps are."""
        self.become_whole()
        counts = self.get_request_counts()
        admits = counts[1] > 0 and counts != self._failed_admission
        open_by_sequence = [open_tokens(request) for request in self.running]
        chunk = self._chunk(open_by_sequence, admits)
        self._limit(open_by_sequence, chunk, admits)
        if not self.max_num_scheduled_tokens and not self.finished_req_ids:
            return self._empty_step
        output = super().schedule(throttle_prefills)
        self._in_flight += output.total_num_scheduled_tokens > 0
        self._count(output)
        self._chunk_fits = not chunk or output.total_num_scheduled_tokens > 0
        if admits and output.total_num_scheduled_tokens < self.max_num_scheduled_tokens:
            admitted = output.scheduled_new_reqs or output.scheduled_cached_reqs.resumed_req_ids
            self._failed_admission = None if admitted else counts
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Process the result of a step, and count its tokens for the choice of the next ones."""
        if scheduler_output is self._empty_step:
            return {}
        self._in_flight -= scheduler_output.total_num_scheduled_tokens > 0
        self._policy.step_done(len(scheduler_output.num_scheduled_tokens))
        self._pacer.step_done(lost=model_runner_output is LOST)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _chunk(self, open_by_sequence: Sequence[int], admits: bool) -> int | None:
        """How many prompt tokens the next step takes: 0 where no prompt is left, None for as many as fit."""
        prompts = [
            Prompt(tokens, request.num_computed_tokens)
            for request, tokens in zip(self.running, open_by_sequence, strict=True)
            if tokens > 1
        ]
        if admits:
            prompts += self._waiting_prompts()
        if not prompts:
            return 0
        whole = any(request.has_encoder_inputs for request in islice(self.waiting, self._max_in_flight))
        if whole or not self._chunk_fits or not self.scheduler_config.enable_chunked_prefill:
            return None
        chunk = self._pacer.chunk(prompts)
        if chunk is None or not self.need_mamba_block_aligned_split:
            return chunk
        block: int = self.cache_config.block_size
        return -(-chunk // block) * block

    def _waiting_prompts(self) -> list[Prompt]:
        """The prompts that wait, as far as the steps in flight could take them; less what the prefix cache is expected
        to have of them."""
        prompts, room = [], self._full_budget * self._max_in_flight
        for request in self.waiting:
            tokens = max(1, self._hits.expected_to_compute(request.num_tokens - request.num_computed_tokens))
            prompts.append(Prompt(tokens, request.num_tokens - tokens))
            room -= tokens
            if room <= 0:
                break
        return prompts

    def _limit(self, open_by_sequence: Sequence[int], chunk: int | None, admits: bool) -> None:
        """Set the next step's budget: 0 where all sequences wait for a step in flight."""
        self.scheduler_config.long_prefill_token_threshold = self._users_threshold
        if chunk is None:
            self.max_num_scheduled_tokens = self._full_budget
        elif not chunk:
            self.max_num_scheduled_tokens = self._budget(open_by_sequence, admits)
        else:
            decoding = [tokens for tokens in open_by_sequence if tokens <= 1]
            shares = self._policy.shares(len(decoding))
            beside = tokens_of_a_share(decoding, self._max_in_flight) if shares else sum(decoding)
            self.max_num_scheduled_tokens = min(self._full_budget, beside + chunk)
            self.scheduler_config.long_prefill_token_threshold = min(chunk, self._users_threshold or chunk)

    def _budget(self, open_by_sequence: Sequence[int], admits: bool) -> int:
        """The token budget of the next step, where no prompt is left; 0 while the running sequences wait for a step in
        flight."""
        shares = self._policy.shares(len(open_by_sequence))
        if admits:
            return self._full_budget
        if self._in_flight and not any(open_by_sequence):
            return 0
        if shares:
            share = tokens_of_a_share(open_by_sequence, self._max_in_flight)
            return min(self._full_budget, share or self._full_budget)
        return 0 if self._in_flight and wait_for_each_other(open_by_sequence) else self._full_budget

    def _count(self, output: SchedulerOutput) -> None:
        """Count the tokens of a step that is sent."""
        scheduled = output.num_scheduled_tokens
        prefill = output.total_num_scheduled_tokens > len(scheduled)
        if prefill:
            self._policy.disturbed()
        pairs = None
        if prefill or self.current_step % MEASURED_EVERY == 0:
            pairs = sum(
                tokens * (self.requests[name].num_computed_tokens - tokens // 2) for name, tokens in scheduled.items()
            )
        prompt_tokens = sum(tokens for tokens in scheduled.values() if tokens > 1) if prefill else 0
        self._pacer.step_made(output.total_num_scheduled_tokens, pairs, prompt_tokens)
        for request in output.scheduled_new_reqs:
            self._hits.admitted(len(request.prompt_token_ids or ()), request.num_computed_tokens)


def tokens_of_a_share(open_by_sequence: Sequence[int], in_flight: int) -> int:
    """The number of tokens in a step that takes an even share of the running sequences.

    Args:
        open_by_sequence: for each running sequence, in order, the number of tokens to compute; 0 while it is in flight.
        in_flight: the number of steps in flight at once.
    """
    share = -(-len(open_by_sequence) // in_flight)
    return sum([tokens for tokens in open_by_sequence if tokens > 0][:share])


def wait_for_each_other(open_by_sequence: Sequence[int]) -> bool:
    """Whether sequences that are to be computed together are in different steps: some are in flight, and each of the
    others has no more than its next token to compute. A prompt that is computed in several steps does not wait.

    Args:
        open_by_sequence: as for `tokens_of_a_share`.
    """
    return 0 in open_by_sequence and max(open_by_sequence) == 1


def open_tokens(request: Request) -> int:
    """The number of tokens of a sequence that are known, and neither computed nor in flight."""
    tokens: int = request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens
    return tokens
