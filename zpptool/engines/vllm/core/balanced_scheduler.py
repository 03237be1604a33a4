# SPDX-License-Identifier: Apache-2.0
"""Divides the running sequences evenly among the steps in flight, so that every stage has a step to compute.

vLLM's scheduler puts all that can be computed into one step. In a pipeline the sequences of that step are then in
flight together, the steps after it are empty, and all stages but one wait. With N stages this scheduler gives a step at
most an Nth of the running sequences, where that is faster (`batching_policy.py`). Where it is not, a step has all of
them: sequences that were in different steps wait for each other once, or each group would continue alone. Nothing else
changes: which requests are admitted and preempted, and in which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zpptool.engines.vllm.compat.control_objects import ModelRunnerOutput, SchedulerOutput
from zpptool.engines.vllm.compat.scheduler_classes import EngineCoreOutputs, Request
from zpptool.engines.vllm.core.batching_policy import BatchingPolicy
from zpptool.engines.vllm.core.scheduler import RecoveringScheduler


class BalancedScheduler(RecoveringScheduler):
    """Survives the loss of a stage, and limits each step's token budget to an even share of the running sequences.

    While sequences wait, and until an attempt to admit one has failed, a step has the whole budget: running sequences
    are served before waiting ones, so a smaller budget would keep them out.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._full_budget: int = self.max_num_scheduled_tokens
        self._max_in_flight: int = self.vllm_config.max_concurrent_batches
        self._in_flight = 0
        self._failed_admission: tuple[int, int] | None = None
        self._empty_step = SchedulerOutput.make_empty()
        self._policy = BatchingPolicy(self._max_in_flight)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """The next step. While all sequences are in flight it is always the same empty object, which costs nothing to
        make and is not reported to the API; vLLM's own empty steps are."""
        self.become_whole()
        counts = self.get_request_counts()
        admits = counts[1] > 0 and counts != self._failed_admission
        self.max_num_scheduled_tokens: int = self._full_budget if admits else self._budget(counts[0])
        if not self.max_num_scheduled_tokens and not self.finished_req_ids:
            return self._empty_step
        output = super().schedule(throttle_prefills)
        self._in_flight += output.total_num_scheduled_tokens > 0
        if output.total_num_scheduled_tokens != len(output.num_scheduled_tokens):
            self._policy.disturbed()
        if admits:
            admitted = output.scheduled_new_reqs or output.scheduled_cached_reqs.resumed_req_ids
            self._failed_admission = None if admitted else counts
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Process the result of a step, and count its tokens for the batching policy."""
        if scheduler_output is self._empty_step:
            return {}
        self._in_flight -= scheduler_output.total_num_scheduled_tokens > 0
        self._policy.step_done(len(scheduler_output.num_scheduled_tokens))
        return super().update_from_output(scheduler_output, model_runner_output)

    def _budget(self, running: int) -> int:
        """The token budget of the next step, where no sequence is admitted; 0 while the running sequences wait for a
        step in flight."""
        shares = self._policy.shares(running)
        open_by_sequence = [open_tokens(request) for request in self.running]
        if self._in_flight and not any(open_by_sequence):
            return 0
        if shares:
            share = tokens_of_a_share(open_by_sequence, self._max_in_flight)
            return min(self._full_budget, share or self._full_budget)
        return 0 if self._in_flight and wait_for_each_other(open_by_sequence) else self._full_budget


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
