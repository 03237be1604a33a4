# SPDX-License-Identifier: Apache-2.0
"""vLLM's scheduler, on a pipeline whose stages may be lost.

A step that was under way when a stage was lost comes back without a result. The scheduler then puts every running
request back among the waiting ones, as it would to make room for others, drops the prefix cache, and lets the other
steps that were under way come to nothing. Before the next step it waits until the ring is whole, and tells every stage
what is live. So no token that a client has seen changes, and none is missing.

All of it happens on the engine core's own thread, between two steps, where nothing else changes the requests.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm.v1.request import RequestStatus

from zpptool.engines.vllm.calls import LiveRequest
from zpptool.engines.vllm.core import executor


class RecoveringScheduler(Scheduler):
    """vLLM's scheduler, which outlives the loss of a stage."""

    outlives_losses = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._times_put_back = 0
        self._in_flight_since: deque[int] = deque()

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """The next step, of a ring that is whole.

        Raises:
            ZppError: (STAGE) the ring has not become whole in time.
        """
        self.become_whole()
        output = super().schedule(throttle_prefills)
        self._in_flight_since.append(self._times_put_back)
        return output

    def become_whole(self) -> None:
        """See that the ring is whole and that its stages know what is live.

        Raises:
            ZppError: (STAGE) the ring has not become whole in time.
        """
        ring = executor.ring_of_this_process()
        while ring is not None and ring.wants_restoring():
            self._put_all_back()
            ring.restore(self._live_requests())

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Take in what a step has computed; a step that was lost with a stage has computed nothing. Steps come back in
        the order in which they were made, so one that was lost may follow a loss that is dealt with already."""
        since = self._in_flight_since.popleft()
        if model_runner_output is executor.LOST:
            if since == self._times_put_back:
                self._put_all_back()
            model_runner_output = EMPTY_MODEL_RUNNER_OUTPUT
        return super().update_from_output(scheduler_output, model_runner_output)

    def _put_all_back(self) -> None:
        """Also what was put back before to make room: its last token, if it is under way, is not waited for."""
        self._times_put_back += 1
        self.reset_prefix_cache(reset_running_requests=True)
        for request in self.requests.values():
            request.drop_stale_output = request.num_stale_output_tokens > 0
        self.reset_encoder_cache()

    def _live_requests(self) -> list[LiveRequest]:
        """The requests that the stages know: those that were scheduled before. A stage meets the others as new ones."""
        return [
            (NewRequestData.from_request(request, self._no_blocks()), list(request.output_token_ids))
            for request in self.requests.values()
            if request.status == RequestStatus.PREEMPTED
        ]

    def _no_blocks(self) -> tuple[list[int], ...]:
        return tuple([] for _ in self.kv_cache_config.kv_cache_groups)
