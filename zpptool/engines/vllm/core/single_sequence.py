# SPDX-License-Identifier: Apache-2.0
"""One sequence a step: stock scheduling, but no two sequences are computed in one batch.

In bf16 a sequence's last bit, and now and then its next token, depends on what else is in the batch: unsplit vLLM
differs from itself that way. How sequences fall into batches depends on how many steps are in flight, so a pipeline
never batches as the unsplit engine does. A trial takes batching out of the comparison: many sequences are in flight at
once, each step holds one of them, and every bit has to be the same.

Selected with `--scheduler-cls zpptool.engines.vllm.core.single_sequence.SingleSequenceScheduler`;
prefix caching has to be off.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput

from zpptool.engines.vllm.core.balanced_scheduler import open_tokens
from zpptool.engines.vllm.core.scheduler import RecoveringScheduler


class SingleSequenceScheduler(RecoveringScheduler):
    """The scheduler that outlives the loss of a stage, with the budget of each step cut to what its first sequence can
    use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens_of_a_step = self.max_num_scheduled_tokens

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """The next step: running sequences come before waiting ones, as ever; a sequence whose last token is still on
        its way round has nothing to compute and is passed over."""
        self.become_whole()
        wanted = next((open_ for request in self.running if (open_ := open_tokens(request)) > 0), 0)
        if not wanted and self.waiting:
            wanted = open_tokens(self.waiting.peek_request())
        self.max_num_scheduled_tokens = min(wanted or self._tokens_of_a_step, self._tokens_of_a_step)
        return super().schedule(throttle_prefills)
