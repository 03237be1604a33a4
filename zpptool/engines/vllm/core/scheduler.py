# SPDX-License-Identifier: Apache-2.0
"""vLLM's scheduler, on a pipeline whose stages may be lost.

A step that was in flight when a stage was lost returns without a result. The scheduler then preempts every running
request, as it would to make room for others, drops the prefix cache, and discards the other steps that were in flight.
Before the next step it waits until the ring is whole, and restores the live requests on every stage. So no token that a
client has received changes, and none is missing.

All of it happens on the engine core's own thread, between two steps, where nothing else changes the requests.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from zpptool.engines.vllm.calls import SET_FEATURES, LiveRequest
from zpptool.engines.vllm.compat.control_objects import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    ModelRunnerOutput,
    NewRequestData,
    SchedulerOutput,
)
from zpptool.engines.vllm.compat.scheduler_classes import EngineCoreOutputs, RequestStatus, Scheduler
from zpptool.engines.vllm.core.executor import ring_of
from zpptool.engines.vllm.core.sent_features import SentFeatures
from zpptool.engines.vllm.core.step_calls import LOST


class RecoveringScheduler(Scheduler):
    """vLLM's scheduler, extended to survive the loss of a stage."""

    outlives_losses = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._times_preempted = 0
        self._in_flight_since: deque[int] = deque()
        self._sent_features = SentFeatures()

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """The next step, for a ring that is whole.

        Raises:
            ZppError: (STAGE) the ring has not become whole in time.
        """
        self.become_whole()
        output = super().schedule(throttle_prefills)
        self._send_missing_features(output)
        self._in_flight_since.append(self._times_preempted)
        return output

    def become_whole(self) -> None:
        """Wait until the ring is whole, and restore the live requests on its stages, if a stage was lost.

        Raises:
            ZppError: (STAGE) the ring has not become whole in time.
        """
        ring = ring_of(self.vllm_config)
        while ring is not None and ring.wants_restoring():
            self._preempt_all()
            ring.restore(self._live_requests())
            self._sent_features.all_sent()

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Process the result of a step. A step that was lost with a stage has no result.

        Steps return in the order in which they were made, so a lost one may return after its loss was dealt with.
        """
        since = self._in_flight_since.popleft()
        if model_runner_output is LOST:
            if since == self._times_preempted:
                self._preempt_all()
            model_runner_output = EMPTY_MODEL_RUNNER_OUTPUT
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        return outputs

    def _send_missing_features(self, output: SchedulerOutput) -> None:
        ring = ring_of(self.vllm_config)
        missing = self._sent_features.missing_for(output, self.requests)
        if missing and ring is not None:
            ring.collective_rpc(SET_FEATURES, args=(missing,))

    def _preempt_all(self) -> None:
        """Preempt every running request. A request that was preempted before to make room may have a token in flight;
        that token is not waited for."""
        self._times_preempted += 1
        self.reset_prefix_cache(reset_running_requests=True)
        for request in self.requests.values():
            request.drop_stale_output = request.num_stale_output_tokens > 0
        self.reset_encoder_cache()

    def _live_requests(self) -> list[LiveRequest]:
        """The requests that the stages have known: those that were scheduled before. The others reach a stage as new
        requests."""
        return [
            (NewRequestData.from_request(request, self._no_blocks()), list(request.output_token_ids))
            for request in self.requests.values()
            if request.status == RequestStatus.PREEMPTED
        ]

    def _no_blocks(self) -> tuple[list[int], ...]:
        return tuple([] for _ in self.kv_cache_config.kv_cache_groups)
