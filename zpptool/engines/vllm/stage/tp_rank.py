# SPDX-License-Identifier: Apache-2.0
"""A process of a tensor-parallel stage that is not its first: it does what rank 0 hands on, until rank 0 has gone.

Started by rank 0 as `python -m zpptool.engines.vllm.stage.tp_rank SPEC RANK STORE FD`.
"""

from __future__ import annotations

import sys
import traceback
from multiprocessing.connection import Connection

import msgspec

from zpptool.config.stage_spec import StageSpec, spec_from_argv
from zpptool.engines.vllm import codec
from zpptool.engines.vllm.stage.model_rank import StageRank
from zpptool.engines.vllm.stage.pipeline_group import RankPipelineGroup
from zpptool.engines.vllm.stage.tp_group import Order, Outcome
from zpptool.errors import ZppError
from zpptool.log import say
from zpptool.process.child import end_on_sigterm, run_child


def main() -> None:
    """Do rank 0's orders, in order."""
    spec, rank = spec_from_argv(sys.argv), int(sys.argv[2])
    end_on_sigterm()
    stage_rank = StageRank(spec, rank, sys.argv[3])
    with Connection(int(sys.argv[4])) as line:
        while True:
            try:
                order = msgspec.msgpack.decode(line.recv_bytes(), type=Order)
            except (EOFError, OSError):
                return
            outcome = _done(spec, rank, stage_rank, order)
            if order.answer or outcome.fatal:
                line.send_bytes(msgspec.msgpack.encode(outcome))


def _done(spec: StageSpec, rank: int, stage_rank: StageRank, order: Order) -> Outcome:
    try:
        if order.method == "load_model":
            stage_rank.load(RankPipelineGroup(spec, rank))
            return Outcome(codec.encode(None))
        args, kwargs = codec.decode(order.payload)
        answer = stage_rank.method(order.method)(*args, **kwargs)
        return Outcome(codec.encode(answer)) if order.answer else Outcome()
    except Exception as cause:
        told = cause.message if isinstance(cause, ZppError) else f"{type(cause).__name__}: {cause}"
        say(f"stage {spec.stage} rank {rank}", f"{order.method} failed: {told}\n{traceback.format_exc()}".rstrip())
        return Outcome(fault=f"{order.method} failed: {told}", fatal=not order.answer)


if __name__ == "__main__":
    run_child(f"stage {spec_from_argv(sys.argv).stage} rank {sys.argv[2]}", main)
