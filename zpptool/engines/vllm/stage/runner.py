# SPDX-License-Identifier: Apache-2.0
"""The two kinds of vLLM's model runner, as a stage uses them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from zpptool.engines.vllm.calls import LiveRequest
from zpptool.engines.vllm.compat import model_runner, v2_runner
from zpptool.engines.vllm.compat.control_objects import SchedulerOutput
from zpptool.engines.vllm.compat.engine_config import VllmConfig
from zpptool.engines.vllm.compat.runner_kind import V2, runner_kind
from zpptool.engines.vllm.compat.worker_wrapper import WorkerWrapperBase
from zpptool.engines.vllm.stage.restore import restore_requests


class Runner(Protocol):
    """What a stage does with its model runner beside the worker's own methods."""

    def cache_is_allocated(self, *, is_first: bool) -> None:
        """Make what the runner has not made itself by then."""
        ...

    def before_step(self, step: SchedulerOutput) -> None:
        """Prepare a forward pass."""
        ...

    def sampling(self) -> AbstractContextManager[None]:
        """What applies while the worker samples."""
        ...

    def restore(self, requests: Sequence[LiveRequest]) -> None:
        """Forget every request, and have these known as requests of which nothing is computed."""
        ...


class V1Runner:
    """vLLM's first model runner.

    Args:
        worker: its device is initialised.
        config: the engine's.
    """

    def __init__(self, worker: WorkerWrapperBase, config: VllmConfig) -> None:
        self._worker = worker
        self._config = config

    def cache_is_allocated(self, *, is_first: bool) -> None:
        """Make the buffers of a later stage's input."""
        if not is_first:
            model_runner.set_empty_intermediate_tensors(self._worker, self._config)

    def before_step(self, step: SchedulerOutput) -> None:
        """Nothing: the runner reads the tokens of a step from its scheduler output."""

    def sampling(self) -> AbstractContextManager[None]:
        """Sequences whose prompts are unfinished draw nothing."""
        return model_runner.unfinished_prompts_draw_nothing(self._worker)

    def restore(self, requests: Sequence[LiveRequest]) -> None:
        """Register the requests: a resumed step assumes that the runner knows them."""
        restore_requests(self._worker, list(requests))


class V2Runner:
    """vLLM's second model runner.

    Args:
        worker: its device is initialised, and its model is not loaded.
    """

    def __init__(self, worker: WorkerWrapperBase) -> None:
        self._worker = worker
        self._tokens = v2_runner.take_tokens_from_scheduler(worker)

    def cache_is_allocated(self, *, is_first: bool) -> None:
        """Nothing: the runner makes its buffers when it loads."""

    def before_step(self, step: SchedulerOutput) -> None:
        """Have the tokens at hand that the last stage has sampled."""
        self._tokens.expect(step)

    def sampling(self) -> AbstractContextManager[None]:
        """Nothing: a sequence has no generator that could be moved."""
        return nullcontext()

    def restore(self, requests: Sequence[LiveRequest]) -> None:
        """Forget every request. The scheduler sends those that are resumed as new ones."""
        self._tokens.expect(None)
        v2_runner.forget_requests(self._worker)


def runner_of(worker: WorkerWrapperBase, config: VllmConfig) -> Runner:
    """The model runner of a worker whose device is initialised and whose model is not loaded."""
    return V2Runner(worker) if runner_kind(config) == V2 else V1Runner(worker, config)
