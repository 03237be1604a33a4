# SPDX-License-Identifier: Apache-2.0
"""The ring as a vLLM executor: the engine core schedules, the stages compute, nothing is computed here.

The engine core imports this class by name in a process of its own; the head's spec reaches it through the environment.

Where the loss of a stage is survived, a step belongs to the epoch whose stages were told of the live requests last. One
that was under way when that epoch ended comes back as `LOST`, and so does every later one until `restore`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

from zpptool.admin.attach import admin_servers
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm import codec
from zpptool.engines.vllm.calls import EXECUTE_AND_SAMPLE, RESTORE_REQUESTS, SET_UP_METHODS, LiveRequest
from zpptool.engines.vllm.compat.engine_core import go_on_after_answers
from zpptool.engines.vllm.core.kv_layout import common_layouts
from zpptool.engines.vllm.core.rebalance import LayerMove
from zpptool.engines.vllm.facts import agreed_facts
from zpptool.errors import ZppError, in_words
from zpptool.log import say
from zpptool.process import progress as phases
from zpptool.process.child import die_with_parent
from zpptool.ring.membership import open_head_node
from zpptool.wire.link_errors import StaleEpoch

LOST = ModelRunnerOutput(req_ids=[], req_id_to_index={})
"""What a step comes back with that was lost with a stage; told from any other by its identity."""




SPEC_VARIABLE = "ZPP_HEAD_SPEC"
"""Holds the head's spec as JSON. vLLM hashes its own configuration into cache keys, so ports are kept out of it."""
FAULT_VARIABLE = "ZPP_HEAD_FAULT"
"""Names the file for the word of what broke the pipeline, where no file can lie beside the local endpoint."""


def fault_file(spec: StageSpec) -> Path:
    """Where the engine core leaves word of what broke the pipeline, for the process that takes the requests: beside the
    local endpoint, or where that process says."""
    return Path(os.environ.get(FAULT_VARIABLE) or spec.local.removeprefix("ipc://") + ".fault")


def end_file(spec: StageSpec) -> Path:
    """Where the engine core leaves word of its end: of its error, or none if it has ended in good order."""
    return fault_file(spec).with_suffix(".end")


class RingExecutor(Executor):
    """Runs each step of the engine core on the stages of the ring."""

    supports_pp = True

    def _init_executor(self) -> None:
        self._failure_callback: Callable[[], None] | None = None
        go_on_after_answers(RingExecutor)
        spec = msgspec.json.decode(os.environ[SPEC_VARIABLE], type=StageSpec)
        self._spec = spec
        scheduler = self.vllm_config.scheduler_config.get_scheduler_cls()
        self._survives = spec.recovery_deadline_s > 0 and getattr(scheduler, "outlives_losses", False)
        die_with_parent(at_once=self._survives)  # an orderly end would tell the stages to end, and they are to wait
        self._adapters: dict[int, list[tuple[str, tuple[Any, ...]]]] = {}
        self._held: tuple[SchedulerOutput, Future[Any]] | None = None
        self._guided: set[str] = set()
        self._node = open_head_node(spec)
        self._admin = ExitStack()
        self._admin.enter_context(admin_servers(self._node, spec))
        self._node.on_fault(self._fail)
        self._moving = LayerMove(spec, self.vllm_config, self._node.facts)
        self._node.on_partition(self._moving.prepare)
        self._node.on_admit(self._moving.amended)
        try:
            self._node.gather(agreed_facts(spec, self.vllm_config))
            self.collective_rpc("load_model")
            self._restored = self._node.wait_until_whole()
        except ZppError as fault:
            fault_file(spec).write_text(fault.message)
            self._node.stop(fault.message)
            self._admin.close()
            self._node.close()
            raise
        phases.report_phase(phases.LOADED)
        say("head", "all stages have loaded their layers")
        _rings[:] = [self]

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the pipeline breaks."""
        self._failure_callback = callback

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        """The layouts of the cache that all stages can have, though each may run another kind of layers."""
        return common_layouts(super().get_supported_kv_cache_layouts())

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
        self._release()
        timeout_s = timeout or self._spec.start_timeout_s
        if non_block:
            return self._start(method, args, kwargs or {}, timeout_s)
        while True:
            try:
                answers = self._start(method, args, kwargs or {}, timeout_s).result()
                break
            except StaleEpoch:
                self._node.wait_until_whole()
        self._note_adapter(method, args)
        self._moving.note(method, args, answers)
        return answers

    def wants_restoring(self) -> bool:
        """Whether the stages have to be told of the live requests before the next step."""
        return self._survives and self._node.whole != self._restored

    def restore(self, requests: list[LiveRequest]) -> None:
        """Wait until the ring is whole, and have every stage forget all requests and take in these.

        Whether it came about is to be asked with `wants_restoring`: another stage may be lost meanwhile.

        Raises:
            ZppError: (STAGE) the ring has not become whole in time.
        """
        epoch = self._node.wait_until_whole()
        began = time.monotonic()
        calls = [call for adapter in self._adapters.values() for call in adapter]
        try:
            for method, args in (*calls, (RESTORE_REQUESTS, (requests,))):
                payload = codec.encode([args, {}])
                timeout_s = self._spec.start_timeout_s
                self._node.call(method, payload, from_all=True, timeout_s=timeout_s, epoch=epoch).result()
        except StaleEpoch:
            return
        self._restored = epoch
        tokens = sum(len(request.prompt_token_ids or ()) + len(answer) for request, answer in requests)
        self._node.count_recomputed(tokens)
        say(
            "head",
            f"recovered: every stage knows the {len(requests)} live requests again, after"
            f" {time.monotonic() - began:.2f} s; their {tokens} tokens are computed anew",
        )

    def execute_model(
        self, scheduler_output: SchedulerOutput, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput | None] | None:
        """Run one step's forward pass through all stages; the last stage's answer.

        Where the call for its tokens follows at once, the two travel as one. An empty step, as the engine core
        makes them while all that it could schedule is in flight, tells the stages nothing and is not sent.
        """
        self._release()
        if _is_empty(scheduler_output):
            return _done(EMPTY_MODEL_RUNNER_OUTPUT) if non_block else EMPTY_MODEL_RUNNER_OUTPUT
        if non_block and self._tokens_follow(scheduler_output):
            future = _HeldFuture(self._release)
            self._held = scheduler_output, future
            return future
        return self._step("execute_model", (scheduler_output,), non_block)

    def sample_tokens(
        self, grammar_output: GrammarOutput | None, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput]:
        """Sample the tokens of the step whose forward pass was started last; the last stage's answer."""
        if self._held is None:
            return self._step("sample_tokens", (grammar_output,), non_block)
        (scheduler_output, future), self._held = self._held, None
        self._step(EXECUTE_AND_SAMPLE, (scheduler_output, grammar_output), True, future)
        return future if non_block else future.result()

    def check_health(self) -> None:
        """Raise the error that broke the pipeline, if one did."""
        if self._node.fault is not None:
            raise self._node.fault

    def shutdown(self) -> None:
        """Tell the stages that the run is over. Where they outlive their head they are not told of one that fails: they
        wait for the next. The engine core calls this on its way out, with its error in flight if it has one."""
        fault = sys.exc_info()[1]
        failed = "" if fault is None or isinstance(fault, SystemExit) else in_words(fault)
        end_file(self._spec).write_text(failed)
        if not failed or not self._survives:
            self._node.stop(f"the head has failed: {failed}" if failed else "the head has shut down")
        self._admin.close()
        self._node.close()

    def _tokens_follow(self, scheduler_output: SchedulerOutput) -> bool:
        """Whether the engine core asks for this step's tokens before it waits for anything.

        It does when it keeps several steps in flight, unless a grammar is about to look at them: then the forward pass
        had better be on its way while the grammar is advanced, which may need the tokens of the step before.
        """
        self._guided -= scheduler_output.finished_req_ids
        for request in scheduler_output.scheduled_new_reqs:
            if request.sampling_params is not None and request.sampling_params.structured_outputs is not None:
                self._guided.add(request.req_id)
        return (
            self.vllm_config.max_concurrent_batches > 1
            and self.model_config.runner_type == "generate"
            and scheduler_output.total_num_scheduled_tokens > 0
            and self._guided.isdisjoint(scheduler_output.num_scheduled_tokens)
        )

    def _release(self) -> None:
        """Send the forward pass that was held back for its tokens, for something else comes first."""
        if self._held is not None:
            (scheduler_output, future), self._held = self._held, None
            self._step("execute_model", (scheduler_output,), True, future)

    def _step(self, method: str, args: tuple[Any, ...], non_block: bool, future: Future[Any] | None = None) -> Any:
        future = future or Future()
        payload = codec.encode([list(map(_for_workers, args)), {}])
        epoch = self._restored if self._survives else None
        answers = self._node.call(method, payload, from_all=False, epoch=epoch)
        _follow(answers, future, lambda parts: codec.decode(parts[0]), lost=LOST if self._survives else None)
        return future if non_block else future.result()

    def _note_adapter(self, method: str, args: tuple[Any, ...]) -> None:
        """Keep what a newborn stage has to be told of adapters."""
        if method == "add_lora":
            self._adapters[args[0].lora_int_id] = [(method, args)]
        elif method == "remove_lora":
            self._adapters.pop(args[0], None)
        elif method == "pin_lora" and args[0] in self._adapters:
            self._adapters[args[0]].append((method, args))

    def _start(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float) -> Future[list[Any]]:
        payload = codec.encode([args, kwargs])
        if method in SET_UP_METHODS:
            payloads = self._node.set_up(method, payload, timeout_s=timeout_s)
        else:
            payloads = self._node.call(method, payload, from_all=True, timeout_s=timeout_s)
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


_rings: list[RingExecutor] = []
"""The executor of this process: an engine core has one."""


def ring_of_this_process() -> RingExecutor | None:
    """The ring that the scheduler of this process schedules for, once its stages have loaded."""
    return _rings[0] if _rings else None


def _is_empty(scheduler_output: SchedulerOutput) -> bool:
    """Whether a step computes nothing, ends nothing and frees nothing: no field of it says anything."""
    if scheduler_output.total_num_scheduled_tokens or scheduler_output.scheduled_cached_reqs.req_ids:
        return False
    fields = dataclasses.fields(scheduler_output)
    return not any(getattr(scheduler_output, field.name) for field in fields if field.name != "scheduled_cached_reqs")


def _for_workers(argument: Any) -> Any:
    """What workers read of an argument. With stages most requests are not in the step before, and the scheduler then
    adds all their tokens so far: for what runs beside it; workers read them under asynchronous scheduling alone."""
    if isinstance(argument, SchedulerOutput) and argument.scheduled_cached_reqs.all_token_ids:
        cached = dataclasses.replace(argument.scheduled_cached_reqs, all_token_ids={})
        return dataclasses.replace(argument, scheduled_cached_reqs=cached)
    return argument


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


class _HeldFuture(Future[Any]):
    """The answer of a call that is held back: whoever waits for it sends it on its way."""

    def __init__(self, release: Callable[[], None]) -> None:
        super().__init__()
        self._release = release

    def result(self, timeout: float | None = None) -> Any:
        """As ever."""
        self._release()
        return super().result(timeout)


def _follow(source: Future[Any], target: Future[Any], change: Callable[[Any], Any], lost: Any = None) -> None:
    """Settle `target` as soon as `source` is, with its changed result or with its error; with `lost`, where that is
    given, when it came to nothing with its epoch."""

    def settle(done: Future[Any]) -> None:
        fault = done.exception()
        if isinstance(fault, StaleEpoch) and lost is not None:
            target.set_result(lost)
            return
        if fault is not None:
            target.set_exception(fault)
            return
        try:
            target.set_result(change(done.result()))
        except ZppError as cause:
            target.set_exception(cause)

    source.add_done_callback(settle)
