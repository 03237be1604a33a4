# SPDX-License-Identifier: Apache-2.0
"""The ring as a vLLM executor: the engine core schedules, the stages compute, nothing is computed here.

The engine core imports this class by name in a process of its own; the head's spec reaches it through the environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.outputs import ModelRunnerOutput

from zpptool.engines.vllm import codec
from zpptool.engines.vllm.agreement import agreed_facts
from zpptool.errors import ZppError
from zpptool.pipeline.child import die_with_parent
from zpptool.pipeline.ring.place import say, take_head_place
from zpptool.pipeline.spec import StageSpec

SPEC_VARIABLE = "ZPP_HEAD_SPEC"
"""Holds the head's spec as JSON. vLLM hashes its own configuration into cache keys, so ports are kept out of it."""
FAULT_VARIABLE = "ZPP_HEAD_FAULT"
"""Names the file for the word of what broke the pipeline, where no file can lie beside the local endpoint."""


def fault_file(spec: StageSpec) -> Path:
    """Where the engine core leaves word of what broke the pipeline, for the process that takes the requests: beside the
    local endpoint, or where that process says."""
    return Path(os.environ.get(FAULT_VARIABLE) or spec.local.removeprefix("ipc://") + ".fault")


class RingExecutor(Executor):
    """Runs each step of the engine core on the stages of the ring."""

    supports_pp = True

    def _init_executor(self) -> None:
        die_with_parent()
        self._failure_callback: Callable[[], None] | None = None
        spec = msgspec.json.decode(os.environ[SPEC_VARIABLE], type=StageSpec)
        self._spec = spec
        self._node = take_head_place(spec)
        self._node.on_fault(self._fail)
        try:
            self._node.gather(agreed_facts(spec, self.vllm_config))
            self.collective_rpc("load_model")
        except ZppError as fault:
            fault_file(spec).write_text(fault.message)
            self._node.stop(fault.message)
            self._node.close()
            raise
        say("head", "all stages have loaded their layers")

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the pipeline breaks."""
        self._failure_callback = callback

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        """Call a worker's method on every stage; the answers in the order of the stages."""
        if not isinstance(method, str):
            raise ZppError(f"{method!r} is a function, and code does not travel between stages", "Name a method.")
        future = self._start(method, args, kwargs or {}, from_all=True, timeout_s=timeout or self._spec.start_timeout_s)
        return future if non_block else future.result()

    def execute_model(
        self, scheduler_output: SchedulerOutput, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput | None] | None:
        """Run one step's forward pass through all stages; the last stage's answer."""
        return self._step("execute_model", scheduler_output, non_block)

    def sample_tokens(
        self, grammar_output: GrammarOutput | None, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput]:
        """Sample the tokens of the step whose forward pass was started last; the last stage's answer."""
        return self._step("sample_tokens", grammar_output, non_block)

    def check_health(self) -> None:
        """Raise the error that broke the pipeline, if one did."""
        if self._node.fault is not None:
            raise self._node.fault

    def shutdown(self) -> None:
        """Tell the stages that the run is over."""
        self._node.stop("the head has shut down")
        self._node.close()

    def _step(self, method: str, argument: Any, non_block: bool) -> Any:
        answers = self._start(method, (argument,), {}, from_all=False, timeout_s=None)
        future: Future[Any] = Future()
        _follow(answers, future, lambda outputs: outputs[0])
        return future if non_block else future.result()

    def _start(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, from_all: bool, timeout_s: float | None
    ) -> Future[list[Any]]:
        payloads = self._node.call(method, codec.encode([args, kwargs]), from_all=from_all, timeout_s=timeout_s)
        answers: Future[list[Any]] = Future()
        _follow(payloads, answers, lambda parts: [codec.decode(part) for part in parts])
        return answers

    def _fail(self, fault: ZppError) -> None:
        say("head", f"the pipeline is broken: {fault.message}")
        if fault.hint:
            say("head", fault.hint)
        fault_file(self._spec).write_text(fault.message)
        if self._failure_callback is not None:
            self._failure_callback()


def _follow(source: Future[Any], target: Future[Any], change: Callable[[Any], Any]) -> None:
    """Settle `target` as soon as `source` is, with its changed result or with its error."""

    def settle(done: Future[Any]) -> None:
        fault = done.exception()
        if fault is not None:
            target.set_exception(fault)
            return
        try:
            target.set_result(change(done.result()))
        except ZppError as cause:
            target.set_exception(cause)

    source.add_done_callback(settle)
