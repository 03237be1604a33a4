# SPDX-License-Identifier: Apache-2.0
"""What the workers of all engines have in common: take a place in the ring, answer the roll call, do the head's calls.

Every call is done once and in order. One that fails is reported to the head, and the stage goes on: the head decides
what a failed call means. A link that fails is another matter, for it is then no longer known which tensors belong to
which call: it ends the process.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import NoReturn, Protocol

import zpptool
from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.stage_tensors import model_digest
from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.config.stage_spec import StageSpec, spec_from_argv
from zpptool.errors import ExitCode, ZppError, in_words
from zpptool.log import say
from zpptool.partition import Partition
from zpptool.process import progress as phases
from zpptool.process.child import end_before_long, end_on_sigterm, run_child
from zpptool.process.respawn import leave_spec
from zpptool.ring.membership import open_stage_node, stage_facts
from zpptool.ring.messages import Call, StageFacts
from zpptool.ring.stage.node import AskedToLeave, RingBroken, RingOver, StageNode
from zpptool.ring.stage.setup_history import History, SetUpOtherwise
from zpptool.ring.status import COMPUTING, LOADING, WARMING_UP
from zpptool.wire.link_errors import StaleEpoch, WireFault

LOAD_MODEL = "load_model"
"""The call, of any engine, that reads the weights."""


class StageEngine(Protocol):
    """What computes the layers of one stage, before and after they are loaded."""

    def agreed(self) -> dict[str, str]:
        """What has to be the same on every stage, by name; asked before anything is loaded."""
        ...

    def do(self, call: Call, payload: bytes) -> bytes | None:
        """Do one call of the head.

        Args:
            call: its method says what to do.
            payload: its arguments, in the engine's own encoding.

        Returns:
            the answer, in the engine's own encoding; None where another stage has failed at the call and said so.
        """
        ...


def common_facts(spec: StageSpec) -> dict[str, str]:
    """What has to be the same on the head and on every stage, whatever the engine; read from headers only.

    The digest names the model whether this process looks at the full checkpoint or at one stage's directory.

    Raises:
        ZppError: (INVALID) the directory is neither.
    """
    return {
        "zpptool": zpptool.__version__,
        "model digest": model_digest(spec.directory),
        "plan digest": spec.plan_digest or "none",
        "recovery": "on" if spec.recovery_deadline_s else "off",
    }


def prepare_partition(
    spec: StageSpec, facts: Callable[[], tuple[StageFacts, ...]], partition: Partition
) -> tuple[int, ...]:
    """Which stages load other layers when these are the ranges; the head's next life is told them too.

    Args:
        spec: stage 0's.
        facts: tells what the stages own now.
        partition: the ranges that are to be.

    Raises:
        ZppError: (INVALID) the model cannot be cut so.
    """
    assign(infer_structure(read_index(spec.directory)), partition)
    leave_spec(spec, partition=tuple((own.start, own.end) for own in partition))
    return tuple(own.stage for own, new in zip(facts(), partition, strict=True) if own.layers != (new.start, new.end))


def run_stage_worker(make: Callable[[StageSpec, StageNode], StageEngine]) -> NoReturn:
    """The whole life of a stage's worker process, as told on its command line."""

    def work() -> None:
        spec = spec_from_argv(sys.argv)
        end_on_sigterm()
        node = open_stage_node(spec)
        node.on_over(_end_even_if_busy)
        node.on_stuck(partial(os._exit, ExitCode.FAILURE))  # whoever keeps this stage up starts it anew
        try:
            engine = make(spec, node)
            agreed = engine.agreed()
            phases.report_phase(phases.WAITING)
            node.join(stage_facts(spec, agreed))
            serve_calls(spec, node, engine.do)
        except AskedToLeave as asked:
            end_before_long(asked.exit_code)
            say(f"stage {spec.stage}", asked.message)
            if asked.partition:
                leave_spec(spec, partition=asked.partition)
            node.leave(asked)
            raise SystemExit(asked.exit_code) from asked
        finally:
            node.close()

    run_child(_own_name(), work)


def _end_even_if_busy(why: ZppError) -> None:
    """When the run is over, a stage that loads weights or computes does not go on with it for minutes."""
    end_before_long(ExitCode.OK if isinstance(why, RingOver) else ExitCode.STAGE)


def _own_name() -> str:
    """What this process calls itself in its log; a command line that cannot be read is for the body to refuse."""
    try:
        return f"stage {spec_from_argv(sys.argv).stage}"
    except ZppError:
        return "stage"


def serve_calls(spec: StageSpec, node: StageNode, do: Callable[[Call, bytes], bytes | None]) -> None:
    """Do the head's calls, one after the other, until it says stop.

    Raises:
        AskedToLeave: (AGAIN, or OK) the head has asked this stage to leave.
        WireFault: (STAGE) the stage before was lost, or did not send what a call needs.
    """
    history = History()
    try:
        for received in node.calls():
            call = received.control
            assert isinstance(call, Call)
            work = partial(do, call, received.payload)
            if call.setup is not None:
                work = partial(history.answer, call, received.payload, work)
            try:
                _serve_call(spec, node, call, work)
            except StaleEpoch:
                say(f"stage {spec.stage}", f"{call.method} is dropped: its epoch is over")
    except RingOver:
        return


def _serve_call(spec: StageSpec, node: StageNode, call: Call, do: Callable[[], bytes | None]) -> None:
    try:
        with node.pulse.at_work(phase_of_call(call)):
            answer = do()
    except (RingOver, StaleEpoch):
        raise
    except (WireFault, SetUpOtherwise) as cause:
        node.fail(None, f"{call.method} failed: {cause.message}")
        if spec.recovery_deadline_s and not isinstance(cause, RingBroken):
            cause.exit_code = ExitCode.FAILURE  # whoever keeps this stage up starts it anew
        raise
    except Exception as cause:
        _report(spec, node, call, cause)
    else:
        if call.method == LOAD_MODEL:
            phases.report_phase(phases.LOADED)
        if answer is not None:
            node.reply(call, answer)


def phase_of_call(call: Call) -> str:
    """What a stage does while it does this call, in a word of its status."""
    if not call.long:
        return COMPUTING
    return LOADING if call.method == LOAD_MODEL else WARMING_UP


def _report(spec: StageSpec, node: StageNode, call: Call, cause: Exception) -> None:
    """Tell the head that a call failed."""
    detail = "" if isinstance(cause, ZppError) else traceback.format_exc()
    message = in_words(cause)
    say(f"stage {spec.stage}", f"{call.method} failed: {message}\n{detail}".rstrip())
    node.fail(call, f"{call.method} failed: {message}", detail)
