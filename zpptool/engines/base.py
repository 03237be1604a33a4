# SPDX-License-Identifier: Apache-2.0
"""What the worker processes of all engines have in common: join the ring, answer the roll call, do the head's calls.

Every call is done once and in order. A call that fails is reported to the head and the stage continues: the head
decides what the failure means. A link that fails ends the process, because it is then unknown which tensors belong to
which call.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NoReturn, Protocol

import zpptool
from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.stage_tensors import model_digest
from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.config.stage_spec import StageSpec, spec_from_argv
from zpptool.errors import ExitCode, ZppError, in_words
from zpptool.log import place_logger
from zpptool.net.tracing import NoSpan, Span, tracer_at
from zpptool.partition import Partition
from zpptool.places import place_name
from zpptool.process import progress as phases
from zpptool.process.child import end_before_long, end_on_sigterm, run_child
from zpptool.process.respawn import leave_spec
from zpptool.ring.membership import open_stage_node, stage_facts
from zpptool.ring.messages import MODEL_SOURCE, Call, StageFacts
from zpptool.ring.stage.endings import AskedToLeave, RingBroken, RingOver
from zpptool.ring.stage.node import StageNode
from zpptool.ring.stage.setup_history import SetupHistory, SetupMismatch
from zpptool.ring.status import COMPUTING, LOADING, WARMING_UP
from zpptool.wire.link_errors import StaleEpoch, WireFault

LOAD_MODEL = "load_model"
"""The call, of every engine, that reads the weights."""


class StageEngine(Protocol):
    """Computes the layers of one stage."""

    def agreed(self) -> dict[str, str]:
        """The facts that must be equal on every stage, by name; called before anything is loaded."""
        ...

    def do(self, call: Call, payload: bytes) -> bytes | None:
        """Do one call of the head.

        Args:
            call: names the method.
            payload: its arguments, in the engine's own encoding.

        Returns:
            the answer, in the engine's own encoding; None where another stage has failed at the call and reported it.
        """
        ...


def common_facts(spec: StageSpec) -> dict[str, str]:
    """The facts that must be equal on the head and on every stage, for all engines. Only file headers are read.

    The model's digest is the same for the full checkpoint and for one stage's directory.

    Raises:
        ZppError: (INVALID) the directory is neither.
    """
    return {
        **({MODEL_SOURCE: spec.source} if spec.source else {}),
        "zpptool": zpptool.__version__,
        "model digest": model_digest(spec.directory),
        "plan digest": spec.plan_digest or "none",
        "recovery": "on" if spec.recovery_deadline_s else "off",
    }


def prepare_partition(
    spec: StageSpec, facts: Callable[[], tuple[StageFacts, ...]], partition: Partition
) -> tuple[int, ...]:
    """Check new layer ranges, and leave them for the process that replaces this head.

    Args:
        spec: stage 0's.
        facts: returns what the stages own now.
        partition: the new layer ranges.

    Returns:
        the stages whose layers change.

    Raises:
        ZppError: (INVALID) the model cannot be split so.
    """
    assign(infer_structure(read_index(spec.directory)), partition)
    leave_spec(spec, partition=tuple((own.start, own.end) for own in partition))
    return tuple(own.stage for own, new in zip(facts(), partition, strict=True) if own.layers != (new.start, new.end))


def run_stage_worker(make: Callable[[StageSpec, StageNode], StageEngine]) -> NoReturn:
    """Run a stage's worker process from its first to its last line, with the spec of its command line."""

    def work() -> None:
        spec = spec_from_argv(sys.argv)
        end_on_sigterm()
        node = open_stage_node(spec)
        node.on_over(_end_even_if_busy)
        node.on_stuck(partial(os._exit, ExitCode.FAILURE))  # the supervisor restarts this stage
        try:
            engine = make(spec, node)
            agreed = engine.agreed()
            phases.report_phase(phases.WAITING)
            node.join(stage_facts(spec, agreed))
            serve_calls(spec, node, engine.do)
        except AskedToLeave as asked:
            end_before_long(asked.exit_code)
            place_logger(__name__, spec.stage).info("%s", asked.message)
            if asked.partition:
                leave_spec(spec, partition=asked.partition)
            node.leave(asked)
            raise SystemExit(asked.exit_code) from asked
        finally:
            node.close()

    run_child(_process_name(), work)


def _end_even_if_busy(why: ZppError) -> None:
    """End this process when the run is over, even if it is loading weights or computing, which may take minutes."""
    end_before_long(ExitCode.OK if isinstance(why, RingOver) else ExitCode.STAGE)


def _process_name() -> str:
    """The name of this process in its log. A command line that cannot be parsed is reported later, by the body."""
    try:
        return f"stage {spec_from_argv(sys.argv).stage}"
    except ZppError:
        return "stage"


def serve_calls(spec: StageSpec, node: StageNode, do: Callable[[Call, bytes], bytes | None]) -> None:
    """Do the head's calls, one after the other, until it stops the run.

    Raises:
        AskedToLeave: (AGAIN, or OK) the head has asked this stage to leave.
        WireFault: (STAGE) the stage before was lost, or did not send what a call needs.
        ZppError: (FAILURE) likewise, where this stage is to be restarted; or the head sets it up in another way.
    """
    history = SetupHistory()
    try:
        for received in node.calls():
            call = received.control
            assert isinstance(call, Call)
            work = partial(do, call, received.payload)
            if call.setup is not None:
                work = partial(history.answer, call, received.payload, work)
            try:
                _serve_call(spec, node, call, work)
            except StaleEpoch as over:
                place_logger(__name__, spec.stage).info(
                    "%s is dropped: its epoch is over", call.method, extra={"epoch": over.epoch}
                )
    except RingOver:
        return


def _serve_call(spec: StageSpec, node: StageNode, call: Call, do: Callable[[], bytes | None]) -> None:
    try:
        with node.pulse.at_work(phase_of_call(call)), span_of_call(spec, call):
            answer = do()
    except (RingOver, StaleEpoch):
        raise
    except (WireFault, SetupMismatch) as cause:
        node.fail(None, f"{call.method} failed: {cause.message}")
        if spec.recovery_deadline_s and not isinstance(cause, RingBroken):
            raise ZppError(cause.message, cause.hint) from cause  # FAILURE: the supervisor restarts this stage
        raise
    except Exception as cause:  # of the engine or the model: the call fails by name, the stage goes on
        _report(spec, node, call, cause)
    else:
        if call.method == LOAD_MODEL:
            phases.report_phase(phases.LOADED)
        if answer is not None:
            node.reply(call, answer)


def span_of_call(spec: StageSpec, call: Call) -> AbstractContextManager[Span]:
    """The span of a stage's part of a step, for a step of one request that is traced; else one that records nothing."""
    if call.request:
        step, request = call.number, call.request
        place_logger(__name__, spec.stage).debug("step %d of request %s", step, request, extra={"request_id": request})
    if not call.trace:
        return nullcontext(NoSpan())
    about: dict[str, str | int | float] = {"zpptool.step": call.number, "zpptool.request_id": call.request}
    return tracer_at(spec.stage).span(f"{place_name(spec.stage)} {call.method}", call.trace, **about)


def phase_of_call(call: Call) -> str:
    """The phase that a stage's status shows while it does this call."""
    if not call.long:
        return COMPUTING
    return LOADING if call.method == LOAD_MODEL else WARMING_UP


def _report(spec: StageSpec, node: StageNode, call: Call, cause: Exception) -> None:
    """Report a failed call to the log and to the head. The traceback of an error that is not zpptool's is included."""
    detail = "" if isinstance(cause, ZppError) else traceback.format_exc()
    message = f"{call.method} failed: {in_words(cause)}"
    place_logger(__name__, spec.stage).error("%s", message, exc_info=cause if detail else None)
    node.fail(call, message, detail)
