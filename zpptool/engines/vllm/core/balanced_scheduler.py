# SPDX-License-Identifier: Apache-2.0
"""Running sequences shared out evenly among the steps in flight, so that every stage has one to compute.

vLLM's scheduler puts all that can be computed into one step. In a pipeline the sequences of that step are then on their
way together, the steps behind it are empty, and all stages but one wait. With N stages this one gives a step at most
an Nth of the running sequences, where that is the faster way (`pace.py`). Where it is not, a step has all of them:
those that were apart wait for each other once, or each half would go on alone. Nothing else changes: who is
admitted, who is preempted, and in which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from zpptool.engines.vllm.core.batching_policy import BatchingPolicy
from zpptool.engines.vllm.core.scheduler import RecoveringScheduler


class BalancedScheduler(RecoveringScheduler):
    """The scheduler that outlives the loss of a stage, with the budget of each step cut to an even share of what runs.

    While sequences wait, and until an attempt to admit one was in vain, a step has the whole budget: running sequences
    are served before waiting ones, so a smaller one would keep them out.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens_of_a_step = self.max_num_scheduled_tokens
        self._in_flight = self.vllm_config.max_concurrent_batches
        self._under_way = 0
        self._in_vain: tuple[int, int] | None = None
        self._nothing = SchedulerOutput.make_empty()
        self._pace = BatchingPolicy(self._in_flight)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """The next step. While all wait for what is in flight it is one and the same empty one, which costs nothing to
        make; vLLM's own has the API told of it."""
        self.become_whole()
        counts = self.get_request_counts()
        admits = counts[1] > 0 and counts != self._in_vain
        self.max_num_scheduled_tokens = self._tokens_of_a_step if admits else self._budget(counts[0])
        if not self.max_num_scheduled_tokens and not self.finished_req_ids:
            return self._nothing
        output = super().schedule(throttle_prefills)
        self._under_way += output.total_num_scheduled_tokens > 0
        if output.total_num_scheduled_tokens != len(output.num_scheduled_tokens):
            self._pace.disturbed()
        if admits:
            admitted = output.scheduled_new_reqs or output.scheduled_cached_reqs.resumed_req_ids
            self._in_vain = None if admitted else counts
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """As ever; the step's tokens are counted."""
        if scheduler_output is self._nothing:
            return {}
        self._under_way -= scheduler_output.total_num_scheduled_tokens > 0
        self._pace.step_done(len(scheduler_output.num_scheduled_tokens))
        return super().update_from_output(scheduler_output, model_runner_output)

    def _budget(self, running: int) -> int:
        """How many tokens the next step may have, of those that run; 0 while they wait for a step in flight."""
        shares = self._pace.shares(running)
        open_by_sequence = [open_tokens(request) for request in self.running]
        if self._under_way and not any(open_by_sequence):
            return 0
        if shares:
            share = tokens_of_a_share(open_by_sequence, self._in_flight)
            return min(self._tokens_of_a_step, share or self._tokens_of_a_step)
        return 0 if self._under_way and wait_for_each_other(open_by_sequence) else self._tokens_of_a_step


def tokens_of_a_share(open_by_sequence: Sequence[int], in_flight: int) -> int:
    """What a step that takes an even share of the running sequences computes, in tokens.

    Args:
        open_by_sequence: for each running sequence, in order, how many tokens it has to compute; 0 while it is in
            flight.
        in_flight: how many steps are in flight at once.
    """
    share = -(-len(open_by_sequence) // in_flight)
    return sum([tokens for tokens in open_by_sequence if tokens > 0][:share])


def wait_for_each_other(open_by_sequence: Sequence[int]) -> bool:
    """Whether sequences that are to be computed together are apart: some are in flight, and each of the others has no
    more than its next token to compute. A prompt that goes in pieces waits for nobody.

    Args:
        open_by_sequence: as `tokens_of_a_share` has it.
    """
    return 0 in open_by_sequence and max(open_by_sequence) == 1


def open_tokens(request: Request) -> int:
    """How many tokens of a sequence are known and not yet computed or being computed."""
    return request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens
