# SPDX-License-Identifier: Apache-2.0
"""One sequence in each step: vLLM's scheduling, but no two sequences are computed in one batch.

In bf16 a sequence's last bit, and now and then its next token, depends on what else is in the batch: even the unsplit
engine differs from itself in this respect. How sequences are batched depends on how many steps are in flight, so a
pipeline never batches as the unsplit engine does. This scheduler takes batching out of a comparison: many sequences are
in flight at once, each step holds one of them, and every bit must be the same.

Selected with `--scheduler-cls zpptool.engines.vllm.core.single_sequence.SingleSequenceScheduler`; prefix caching must
be off.
"""

from __future__ import annotations

from typing import Any

from zpptool.engines.vllm.compat.control_objects import SchedulerOutput
from zpptool.engines.vllm.core.balanced_scheduler import open_tokens
from zpptool.engines.vllm.core.scheduler import RecoveringScheduler


class SingleSequenceScheduler(RecoveringScheduler):
    """Survives the loss of a stage, and limits each step's token budget to what its first sequence can use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._full_budget: int = self.max_num_scheduled_tokens

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """The next step. As in vLLM, running sequences come before waiting ones. A sequence whose last token is still
        in flight has nothing to compute and is passed over."""
        self.become_whole()
        wanted = next((tokens for request in self.running if (tokens := open_tokens(request)) > 0), 0)
        if not wanted and self.waiting:
            wanted = open_tokens(self.waiting.peek_request())
        self.max_num_scheduled_tokens: int = min(wanted or self._full_budget, self._full_budget)
        return super().schedule(throttle_prefills)
