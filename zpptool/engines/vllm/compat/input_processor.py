# SPDX-License-Identifier: Apache-2.0
"""Where vLLM turns a prompt into the request that its engine core gets: the last place at which a client is answered
with 400, for a server and for `LLM` alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.input_processor import InputProcessor

from zpptool.errors import ZppError


def refuse_requests(check: Callable[[Any], None]) -> None:
    """Have this process check each request before the engine core gets it.

    Args:
        check: takes vLLM's `EngineCoreRequest`. A `ZppError` that it raises is the client's error.
    """
    stock = InputProcessor.process_inputs
    if stock.__module__ == __name__:
        return

    def process_inputs(processor: InputProcessor, *args: Any, **kwargs: Any) -> Any:
        request = stock(processor, *args, **kwargs)
        try:
            check(request)
        except ZppError as refusal:
            raise VLLMValidationError(refusal.message) from refusal
        return request

    InputProcessor.process_inputs = process_inputs
