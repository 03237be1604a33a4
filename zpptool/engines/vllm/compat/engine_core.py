# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine core and its executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.executor.abstract import Executor

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCore

__all__ = ["Executor", "skip_sleep_after_answers"]


def skip_sleep_after_answers(executor_class: type) -> None:
    """Have an engine core go from an answer to the next step without a pause.

    After a step that computed nothing vLLM's engine core sleeps for a millisecond, so that threads that move KV caches
    get their turn. With several steps in flight it makes such an empty step beside each one that holds all running
    sequences, and would sleep before every next token. A pipeline of stages has no such threads: KV connectors are
    refused.

    Args:
        executor_class: only engine cores with an executor of this class are changed.
    """
    from vllm.v1.engine.core import EngineCore  # already imported by the caller, an engine core process

    stock = EngineCore.step_with_batch_queue
    if stock.__module__ == __name__:
        return

    def step(core: EngineCore) -> tuple[dict[int, Any] | None, bool]:
        outputs, executed = stock(core)
        return outputs, executed or (bool(outputs) and isinstance(core.model_executor, executor_class))

    EngineCore.step_with_batch_queue = step
