# SPDX-License-Identifier: Apache-2.0
"""The engine core's steps as calls to the stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from zpptool.engines.vllm import codec
from zpptool.engines.vllm.calls import EXECUTE_AND_SAMPLE
from zpptool.engines.vllm.compat.control_objects import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    GrammarOutput,
    ModelRunnerOutput,
    SchedulerOutput,
)
from zpptool.engines.vllm.core.futures import HeldFuture, completed, settle_from
from zpptool.ring.head.node import HeadNode

LOST = ModelRunnerOutput(req_ids=[], req_id_to_index={})
"""The result of a step that was lost with a stage. Compare by identity."""


class StepCalls:
    """Sends each step to the stages, and returns the last stage's answer.

    A forward pass and the request for its tokens travel as one call where the engine core asks for the tokens before it
    waits for anything. For that the forward pass is held back until the tokens are asked for.

    Args:
        node: the head's place in the ring.
        merge: whether the engine core keeps several steps in flight and generates tokens.
        epoch: returns the epoch that a step belongs to; None where a loss is not survived.
    """

    def __init__(self, node: HeadNode, *, merge: bool, epoch: Callable[[], int | None]) -> None:
        self._node = node
        self._merge = merge
        self._epoch = epoch
        self._held: tuple[SchedulerOutput, Future[Any]] | None = None
        self._guided: set[str] = set()

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool) -> Any:
        """Start a step's forward pass. A step without any content is not sent: the engine core makes such steps while
        all that it could schedule is in flight."""
        self.release()
        if _is_empty(scheduler_output):
            return completed(EMPTY_MODEL_RUNNER_OUTPUT) if non_block else EMPTY_MODEL_RUNNER_OUTPUT
        if non_block and self._tokens_follow(scheduler_output):
            future = HeldFuture(self.release)
            self._held = scheduler_output, future
            return future
        return self._call("execute_model", (scheduler_output,), non_block)

    def sample_tokens(self, grammar_output: GrammarOutput | None, non_block: bool) -> Any:
        """Sample the tokens of the step whose forward pass was started last."""
        if self._held is None:
            return self._call("sample_tokens", (grammar_output,), non_block)
        (scheduler_output, future), self._held = self._held, None
        self._call(EXECUTE_AND_SAMPLE, (scheduler_output, grammar_output), True, future)
        return future if non_block else future.result()

    def release(self) -> None:
        """Send the forward pass that is held back, if there is one, so that the next call comes after it."""
        if self._held is not None:
            (scheduler_output, future), self._held = self._held, None
            self._call("execute_model", (scheduler_output,), True, future)

    def _tokens_follow(self, scheduler_output: SchedulerOutput) -> bool:
        """Whether the engine core asks for this step's tokens before it waits for anything.

        It does when it keeps several steps in flight, unless a request of the step is guided by a grammar. The grammar
        may need the tokens of the step before, so the forward pass is sent ahead and computed meanwhile.
        """
        self._guided -= scheduler_output.finished_req_ids
        for request in scheduler_output.scheduled_new_reqs:
            if request.sampling_params is not None and request.sampling_params.structured_outputs is not None:
                self._guided.add(request.req_id)
        return (
            self._merge
            and scheduler_output.total_num_scheduled_tokens > 0
            and self._guided.isdisjoint(scheduler_output.num_scheduled_tokens)
        )

    def _call(self, method: str, args: tuple[Any, ...], non_block: bool, future: Future[Any] | None = None) -> Any:
        future = future or Future()
        payload = codec.encode([list(map(_for_workers, args)), {}])
        epoch = self._epoch()
        answers = self._node.call(method, payload, from_all=False, epoch=epoch)
        settle_from(answers, future, lambda parts: codec.decode(parts[0]), lost=None if epoch is None else LOST)
        return future if non_block else future.result()


def _is_empty(scheduler_output: SchedulerOutput) -> bool:
    """Whether a step computes nothing, ends nothing and frees nothing: every field of it is empty."""
    if scheduler_output.total_num_scheduled_tokens or scheduler_output.scheduled_cached_reqs.req_ids:
        return False
    fields = dataclasses.fields(scheduler_output)
    return not any(getattr(scheduler_output, field.name) for field in fields if field.name != "scheduled_cached_reqs")


def _for_workers(argument: Any) -> Any:
    """An argument without what workers do not read.

    Across stages most requests of a step are not in the step before, and for each of those the scheduler adds all
    tokens so far. Workers read them under asynchronous scheduling alone.
    """
    if isinstance(argument, SchedulerOutput) and argument.scheduled_cached_reqs.all_token_ids:
        cached = dataclasses.replace(argument.scheduled_cached_reqs, all_token_ids={})
        return dataclasses.replace(argument, scheduled_cached_reqs=cached)
    return argument
