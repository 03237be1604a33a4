# SPDX-License-Identifier: Apache-2.0
"""A vLLM executor whose workers are the stages of a ring: the engine core schedules, the stages compute.

The engine core imports this class by name in a process of its own; the head's spec is passed in the environment.

Where the pipeline survives the loss of a stage, a step belongs to the epoch in which the live requests were restored
last. A step that was in flight when that epoch ended returns `LOST`, and so does every later one until `restore`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from zpptool.admin.attach import admin_servers
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm import codec
from zpptool.engines.vllm.calls import RESTORE_REQUESTS, SET_UP_METHODS, LiveRequest
from zpptool.engines.vllm.compat.control_objects import GrammarOutput, ModelRunnerOutput, SchedulerOutput
from zpptool.engines.vllm.compat.engine_config import VllmConfig
from zpptool.engines.vllm.compat.engine_core import Executor, skip_sleep_after_answers
from zpptool.engines.vllm.core.adapter_calls import AdapterCalls
from zpptool.engines.vllm.core.futures import settle_from
from zpptool.engines.vllm.core.kv_layout import common_layouts
from zpptool.engines.vllm.core.rebalance import LayerMove
from zpptool.engines.vllm.core.step_calls import StepCalls
from zpptool.engines.vllm.facts import agreed_facts
from zpptool.errors import ZppError, in_words
from zpptool.log import ROOT, configure, place_logger
from zpptool.places import HEAD, place_name
from zpptool.process import progress as phases
from zpptool.process.child import die_with_parent
from zpptool.process.environment import head_fault_file, head_spec
from zpptool.ring.membership import open_head_node
from zpptool.wire.link_errors import StaleEpoch

_log = place_logger(__name__, HEAD)
RING_ATTRIBUTE = "zpptool_ring"
"""The attribute of vLLM's configuration that holds the executor: the engine core gives one configuration to its
executor and to its scheduler, and nothing else to both."""


def fault_file(spec: StageSpec) -> Path:
    """The file into which the engine core writes the error that broke the pipeline, for the process that takes the
    requests: beside the local endpoint, or where its parent says."""
    return head_fault_file() or Path(spec.local.removeprefix("ipc://") + ".fault")


def end_file(spec: StageSpec) -> Path:
    """The file into which the engine core writes its error when it ends; empty after an orderly shutdown."""
    return fault_file(spec).with_suffix(".end")


class RingExecutor(Executor):
    """Runs each step of the engine core on the stages of the ring."""

    supports_pp = True

    def _init_executor(self) -> None:
        if not logging.getLogger(ROOT).hasHandlers():  # vLLM has spawned this process
            configure(place=place_name(HEAD))
        self._failure_callback: Callable[[], None] | None = None
        skip_sleep_after_answers(RingExecutor)
        spec = head_spec()
        self._spec = spec
        scheduler = self.vllm_config.scheduler_config.get_scheduler_cls()
        self._survives = spec.recovery_deadline_s > 0 and getattr(scheduler, "outlives_losses", False)
        die_with_parent(at_once=self._survives)  # an orderly shutdown would stop the stages, which are to wait instead
        self._node = open_head_node(spec)
        self._admin = ExitStack()
        self._admin.enter_context(admin_servers(self._node, spec))
        self._node.on_fault(self._fail)
        self._adapters = AdapterCalls()
        self._layer_move = LayerMove(spec, self.vllm_config, self._node.facts)
        self._node.on_partition(self._layer_move.prepare)
        self._node.on_admit(self._layer_move.amended)
        merge = self.vllm_config.max_concurrent_batches > 1 and self.model_config.runner_type == "generate"
        self._steps = StepCalls(self._node, merge=merge, epoch=self._epoch_of_steps)
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
        _log.info("all stages have loaded their layers")
        setattr(self.vllm_config, RING_ATTRIBUTE, self)

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the pipeline breaks."""
        self._failure_callback = callback

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        """For each stage, the layouts of the cache that all stages support, whatever kinds of layers they have."""
        return common_layouts(super().get_supported_kv_cache_layouts())

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        """Call a worker's method on every stage.

        Args:
            method: its name.
            timeout: seconds; None for the timeout of the start.
            args: its arguments.
            kwargs: its keyword arguments.
            non_block: return a future.

        Returns:
            the answers, in the order of the stages.

        Raises:
            ZppError: `method` is a function, or a stage has failed at the call.
        """
        if not isinstance(method, str):
            raise ZppError(f"{method!r} is a function, and code does not travel between stages", "Name a method.")
        self._steps.release()
        timeout_s = timeout or self._spec.start_timeout_s
        if non_block:
            return self._start(method, args, kwargs or {}, timeout_s)
        while True:
            try:
                answers = self._start(method, args, kwargs or {}, timeout_s).result()
                break
            except StaleEpoch:
                self._node.wait_until_whole()
        self._adapters.record(method, args)
        self._layer_move.record(method, args, answers)
        return answers

    def wants_restoring(self) -> bool:
        """Whether the live requests have to be restored on the stages before the next step."""
        return self._survives and bool(self._node.whole != self._restored)

    def restore(self, requests: list[LiveRequest]) -> None:
        """Wait until the ring is whole, and have every stage forget all requests and register these.

        Another stage may be lost meanwhile: ask `wants_restoring` afterwards.

        Raises:
            ZppError: (STAGE) the ring has not become whole in time.
        """
        epoch = self._node.wait_until_whole()
        began = time.monotonic()
        try:
            for method, args in (*self._adapters.all(), (RESTORE_REQUESTS, (requests,))):
                payload = codec.encode([args, {}])
                timeout_s = self._spec.start_timeout_s
                self._node.call(method, payload, from_all=True, timeout_s=timeout_s, epoch=epoch).result()
        except StaleEpoch:
            return
        self._restored = epoch
        tokens = sum(len(request.prompt_token_ids or ()) + len(answer) for request, answer in requests)
        self._node.count_recomputed(tokens)
        _log.info(
            "recovered: every stage knows the %d live requests again, after %.2f s; their %d tokens are computed again",
            len(requests),
            time.monotonic() - began,
            tokens,
            extra={"epoch": epoch},
        )

    def execute_model(
        self, scheduler_output: SchedulerOutput, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput | None] | None:
        """Run one step's forward pass through all stages; returns the last stage's answer."""
        return self._steps.execute_model(scheduler_output, non_block)

    def sample_tokens(
        self, grammar_output: GrammarOutput | None, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput]:
        """Sample the tokens of the step whose forward pass was started last; returns the last stage's answer."""
        return self._steps.sample_tokens(grammar_output, non_block)

    def check_health(self) -> None:
        """Raise the error that broke the pipeline, if one did."""
        if self._node.fault is not None:
            raise self._node.fault

    def shutdown(self) -> None:
        """Stop the stages. Stages that survive the loss of their head are not stopped when the head has failed: they
        wait for the next one. The engine core calls this as it ends, with its error in flight if it has one."""
        fault = sys.exc_info()[1]
        failed = "" if fault is None or isinstance(fault, SystemExit) else in_words(fault)
        end_file(self._spec).write_text(failed)
        if not failed or not self._survives:
            self._node.stop(f"the head has failed: {failed}" if failed else "the head has shut down")
        self._admin.close()
        self._node.close()

    def _epoch_of_steps(self) -> int | None:
        return self._restored if self._survives else None

    def _start(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float) -> Future[list[Any]]:
        payload = codec.encode([args, kwargs])
        if method in SET_UP_METHODS:
            payloads = self._node.set_up(method, payload, timeout_s=timeout_s)
        else:
            payloads = self._node.call(method, payload, from_all=True, timeout_s=timeout_s)
        answers: Future[list[Any]] = Future()
        settle_from(payloads, answers, lambda parts: [codec.decode(part) for part in parts])
        return answers

    def _fail(self, fault: ZppError) -> None:
        _log.error("the pipeline is broken: %s", fault.message, extra={"hint": fault.hint})
        fault_file(self._spec).write_text(fault.message)
        if self._failure_callback is not None:
            self._failure_callback()


def ring_of(config: VllmConfig) -> RingExecutor | None:
    """The executor of the engine with this configuration, once its stages have loaded; None for other executors."""
    ring: RingExecutor | None = getattr(config, RING_ATTRIBUTE, None)
    return ring
