# SPDX-License-Identifier: Apache-2.0
"""One stage's worker process: an unmodified vLLM worker, driven by the calls that come round the ring.

Started as `python -m zpptool.engines.vllm.worker SPEC`. In a tensor-parallel stage this is rank 0, which starts the
others, hands each call on to them, and is the only one with links.
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
from zpptool.engines.vllm.stage.tp_group import Ranks
from zpptool.errors import ExitCode, ZppError, in_words
from zpptool.log import say
from zpptool.process.progress import PHASE_VARIABLE
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
        store = _new_store()
        self._ranks = Ranks(spec, store, self._lost) if spec.tensor_parallel_size > 1 else None
        self._own = StageRank(spec, 0, store)
        self._run = ""

    def agreed(self) -> dict[str, str]:
        """What has to be the same on every stage."""
        return agreed_facts(self._spec, self._own.config)

    def do(self, call: Call, payload: bytes) -> bytes:
        """Call the worker's method that the head names, on all ranks. Of another head's requests none is known to the
        one that has come in its place."""
        before, self._run = self._run, self._node.doing.run_id
        if before not in ("", self._run) and self._own.worker is not None:
            self._answer(Call(number=call.number, method=RESTORE_REQUESTS, from_all=True), codec.encode([[[]], {}]))
        return self._answer(call, payload)

    def _answer(self, call: Call, payload: bytes) -> bytes:
        if self._ranks is None:
            return self._encoded(call, self._done(call, payload))
        return self._do_on_all(self._ranks, call, payload)

    def _do_on_all(self, ranks: Ranks, call: Call, payload: bytes) -> bytes:
        """As `do`, in step with the other ranks. A call that wants no answers of all is a step: should it fail here,
        the others stand in the middle of it, and nothing brings them back.

        Raises:
            LinkError: (STAGE) a step failed.
        """
        ranks.order(call.method, payload, answer=call.from_all)
        try:
            answer = self._done(call, payload)
        except Exception as cause:
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
        return self._encoded(call, answer)

    def _done(self, call: Call, payload: bytes) -> Any:
        if call.method == "load_model":
            return self._own.load(WirePipelineGroup(self._node, self._spec))
        args, kwargs = codec.decode(payload)
        return self._own.method(call.method)(*args, **kwargs)

    def _encoded(self, call: Call, answer: Any) -> bytes:
        return codec.encode(answer) if call.from_all or self._spec.is_last else b""

    def _lost(self, fault: ZppError) -> None:
        """A rank has gone: tell the head, then this log; the process ends thereafter."""
        say(f"stage {self._spec.stage}", f"error: {fault.message}")
        with suppress(ZppError):
            self._node.fail(None, fault.message)
        if self._spec.recovery_deadline_s:
            os._exit(ExitCode.FAILURE)  # whoever keeps this stage up starts it anew, with all its ranks
        self._node.close()


def _new_store() -> str:
    """Where torch.distributed of this stage meets itself: a file in the run's directory, which goes with the run."""
    told = os.environ.get(PHASE_VARIABLE)
    directory = Path(told).parent if told else Path(tempfile.gettempdir())
    return f"file://{directory}/zpp_dist_{secrets.token_hex(16)}"


if __name__ == "__main__":
    run_stage_worker(StageWorker)
