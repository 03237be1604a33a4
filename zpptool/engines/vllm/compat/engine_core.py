# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine core, as it runs for stages: it goes on at once after an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCore


def go_on_after_answers(ours: type) -> None:
    """Have an engine core whose executor is of the class `ours` not rest between an answer and the next step.

    After a step that computed nothing it sleeps for a millisecond, for the sake of threads that move KV caches. With
    several steps in flight it makes such an empty step beside each one that holds all running sequences, and so sleeps
    before every next token of theirs. Across stages there are no such threads: KV connectors are refused.
    """
    from vllm.v1.engine.core import EngineCore  # of the engine core's process, which asks

    stock = EngineCore.step_with_batch_queue
    if stock.__module__ == __name__:
        return

    def step(core: EngineCore) -> tuple[dict[int, Any] | None, bool]:
        outputs, executed = stock(core)
        return outputs, executed or (bool(outputs) and isinstance(core.model_executor, ours))

    EngineCore.step_with_batch_queue = step
