# SPDX-License-Identifier: Apache-2.0
"""The process of a tensor-parallel rank other than 0: it does the calls that rank 0 forwards, until rank 0 ends.

Started by rank 0 as `python -m zpptool.engines.vllm.stage.tp_rank SPEC RANK STORE FD`.
"""

from __future__ import annotations

import logging
import sys
from multiprocessing.connection import Connection

import msgspec

from zpptool.config.stage_spec import StageSpec, spec_from_argv
from zpptool.engines.vllm import codec
from zpptool.engines.vllm.stage.model_rank import StageRank
from zpptool.engines.vllm.stage.pipeline_group import RankPipelineGroup
from zpptool.engines.vllm.stage.tp_group import ForwardedCall, Outcome
from zpptool.errors import in_words
from zpptool.process.child import end_on_sigterm, run_child

_log = logging.getLogger("zpptool.engines.vllm.stage.tp_rank")  # this module is run as `__main__`


def main() -> None:
    """Do the forwarded calls, in call."""
    spec, rank = spec_from_argv(sys.argv), int(sys.argv[2])
    end_on_sigterm()
    stage_rank = StageRank(spec, rank, sys.argv[3])
    with Connection(int(sys.argv[4])) as connection:
        while True:
            try:
                call = msgspec.msgpack.decode(connection.recv_bytes(), type=ForwardedCall)
            except (EOFError, OSError):
                return
            outcome = _do(spec, rank, stage_rank, call)
            if call.answer or outcome.fatal:
                connection.send_bytes(msgspec.msgpack.encode(outcome))


def _do(spec: StageSpec, rank: int, stage_rank: StageRank, call: ForwardedCall) -> Outcome:
    try:
        if call.method == "load_model":
            stage_rank.load(RankPipelineGroup(spec, rank))
            return Outcome(codec.encode(None))
        args, kwargs = codec.decode(call.payload)
        answer = stage_rank.method(call.method)(*args, **kwargs)
        return Outcome(codec.encode(answer)) if call.answer else Outcome()
    except Exception as cause:
        fault = f"{call.method} failed: {in_words(cause)}"
        _log.exception(fault)
        return Outcome(fault=fault, fatal=not call.answer)


if __name__ == "__main__":
    run_child(f"stage {spec_from_argv(sys.argv).stage} rank {sys.argv[2]}", main)
