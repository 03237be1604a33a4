# SPDX-License-Identifier: Apache-2.0
"""One stage's worker process: an unmodified vLLM worker, driven by the calls that arrive over the ring.

Started as `python -m zpptool.engines.vllm.worker SPEC`. In a tensor-parallel stage this is rank 0. It starts the other
ranks, forwards each call to them, and is the only one with links.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.base import run_stage_worker
from zpptool.engines.vllm import codec
from zpptool.engines.vllm.calls import RESTORE_REQUESTS
from zpptool.engines.vllm.facts import agreed_facts
from zpptool.engines.vllm.stage.model_rank import StageRank
from zpptool.engines.vllm.stage.pipeline_group import WirePipelineGroup
from zpptool.engines.vllm.stage.tp_group import TensorParallelRanks
from zpptool.errors import ExitCode, ZppError, in_words
from zpptool.log import place_logger
from zpptool.process.environment import phase_file
from zpptool.ring.messages import Call
from zpptool.ring.stage.node import StageNode
from zpptool.wire.link_errors import LinkError


class StageWorker:
    """A stage of vLLM at one place of the ring.

    Args:
        spec: its place and what it loads.
        node: its links, open.
    """

    def __init__(self, spec: StageSpec, node: StageNode) -> None:
        self._spec = spec
        self._node = node
        self._log = place_logger(__name__, spec.stage)
        store = _new_store()
        self._ranks = TensorParallelRanks(spec, store, self._rank_lost) if spec.tensor_parallel_size > 1 else None
        self._own = StageRank(spec, 0, store)
        self._run_id = ""

    def agreed(self) -> dict[str, str]:
        """The facts that must be equal on every stage."""
        return agreed_facts(self._spec, self._own.config)

    def do(self, call: Call, payload: bytes) -> bytes:
        """Call the worker's method that the head names, on all ranks. A head that has replaced another one does not
        know that one's requests, so they are dropped first."""
        before, self._run_id = self._run_id, self._node.doing.run_id
        if before not in ("", self._run_id) and self._own.worker is not None:
            self._answer(Call(number=call.number, method=RESTORE_REQUESTS, from_all=True), codec.encode([[[]], {}]))
        return self._answer(call, payload)

    def _answer(self, call: Call, payload: bytes) -> bytes:
        if self._ranks is None:
            return self._encode(call, self._call_worker(call, payload))
        return self._do_on_all(self._ranks, call, payload)

    def _do_on_all(self, ranks: TensorParallelRanks, call: Call, payload: bytes) -> bytes:
        """Do a call on rank 0 and on the others. A call that is not answered by all stages is a step: if rank 0 fails
        at it, the others wait for rank 0 in the middle of the step and cannot go on.

        Raises:
            LinkError: (STAGE) a step failed.
        """
        ranks.forward(call.method, payload, answer=call.from_all)
        try:
            answer = self._call_worker(call, payload)
        except Exception as cause:  # any error of vLLM's worker: the other ranks have begun the call too
            if call.from_all:
                ranks.answers(self._spec.start_timeout_s)
                raise
            stage, size = self._spec.stage, self._spec.tensor_parallel_size
            raise LinkError(
                f"rank 0 of {size} of stage {stage} failed: {in_words(cause)}",
                stage=stage,
                peer="its ranks",
                endpoint="inside",
            ) from cause
        if call.from_all:
            outcomes = ranks.answers(self._spec.start_timeout_s)
            fault = next((outcome.fault for outcome in outcomes if outcome.fault), "")
            if fault:
                raise ZppError(f"on another tensor-parallel rank: {fault}")
            if call.method == "determine_available_memory":
                answer = min(answer, *(codec.decode(outcome.payload) for outcome in outcomes))
        return self._encode(call, answer)

    def _call_worker(self, call: Call, payload: bytes) -> Any:
        if call.method == "load_model":
            return self._own.load(WirePipelineGroup(self._node, self._spec))
        args, kwargs = codec.decode(payload)
        return self._own.method(call.method)(*args, **kwargs)

    def _encode(self, call: Call, answer: Any) -> bytes:
        return codec.encode(answer) if call.from_all or self._spec.is_last else b""

    def _rank_lost(self, fault: ZppError) -> None:
        """Report the loss of a rank to the log and to the head. The process ends afterwards."""
        self._log.error("%s", fault.message)
        with suppress(ZppError):
            self._node.fail(None, fault.message)
        if self._spec.recovery_deadline_s:
            os._exit(ExitCode.FAILURE)  # the supervisor restarts this stage, with all its ranks
        self._node.close()


def _new_store() -> str:
    """URL of the file through which torch.distributed of this stage's ranks find each other. It is in the run's
    directory and is removed with that."""
    phases = phase_file()
    directory = phases.parent if phases else Path(tempfile.gettempdir())
    return f"file://{directory}/zpp_dist_{secrets.token_hex(16)}"


if __name__ == "__main__":
    run_stage_worker(StageWorker)
