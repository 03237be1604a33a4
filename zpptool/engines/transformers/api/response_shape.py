# SPDX-License-Identifier: Apache-2.0
"""The JSON of /v1/responses: OpenAI's response object, and the events by which it is streamed."""

from __future__ import annotations

import itertools
import time
import uuid
from typing import Any

from zpptool.engines.transformers.api.answer import Answer
from zpptool.engines.transformers.api.logprobs import TokenText, chat_logprobs
from zpptool.engines.transformers.api.response_request import ResponseRequest

Event = dict[str, Any]


class ResponseShape:
    """One response.

    Attributes:
        answer: what was generated so far.

    Args:
        body: the request.
        model: the name under which the model is served.
        prompt_tokens: their number.
        text_of: converts a token to text, for log probabilities.
    """

    def __init__(self, body: ResponseRequest, model: str, prompt_tokens: int, text_of: TokenText) -> None:
        self._body = body
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._text_of = text_of
        self._id, self._item = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._numbers = itertools.count()
        self.answer = Answer()

    def whole(self) -> dict[str, Any]:
        """The response, when the answer is complete."""
        is_cut = self.answer.finish_reason == "length"
        used = len(self.answer.choices)
        usage = {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": used,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._prompt_tokens + used,
        }
        details = {"reason": "max_output_tokens"} if is_cut else None
        return self._response("incomplete" if is_cut else "completed", [self._message()], usage, details)

    def opening(self) -> list[Event]:
        """The events before the first piece."""
        response = self._response("in_progress", [], None, None)
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
            self._event("response.output_item.added", output_index=0, item=self._bare_message()),
            self._event("response.content_part.added", **self._place(), part=self._part("", [])),
        ]

    def piece(self, piece: Answer) -> list[Event]:
        """The events of the next piece."""
        self.answer.add(piece)
        if not piece.text:
            return []
        logprobs = self._logprobs(piece) or []
        return [self._event("response.output_text.delta", **self._place(), delta=piece.text, logprobs=logprobs)]

    def closing(self) -> list[Event]:
        """The events after the last piece. The last one has vLLM's type also where the answer was cut off."""
        text, logprobs = self.answer.text, self._logprobs(self.answer) or []
        return [
            self._event("response.output_text.done", **self._place(), text=text, logprobs=logprobs),
            self._event("response.content_part.done", **self._place(), part=self._message()["content"][0]),
            self._event("response.output_item.done", output_index=0, item=self._message()),
            self._event("response.completed", response=self.whole()),
        ]

    def failure(self, message: str) -> Event:
        """The event of an error in the middle of a stream."""
        return self._event("error", code="server_error", message=message, param=None)

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _bare_message(self) -> dict[str, Any]:
        return {"id": self._item, "type": "message", "role": "assistant", "status": "in_progress", "content": []}

    def _message(self) -> dict[str, Any]:
        status = "incomplete" if self.answer.finish_reason == "length" else "completed"
        part = self._part(self.answer.text, self._logprobs(self.answer))
        return {**self._bare_message(), "status": status, "content": [part]}

    def _part(self, text: str, logprobs: list[Any] | None) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, answer: Answer) -> list[Any] | None:
        if self._body.num_logprobs is None:
            return None
        content: list[Any] = chat_logprobs(answer.choices, self._text_of)["content"]
        return content

    def _response(
        self, status: str, output: list[Any], usage: dict[str, Any] | None, incomplete: dict[str, Any] | None
    ) -> dict[str, Any]:
        body = self._body
        return {
            "id": self._id, "object": "response", "created_at": self._created, "model": self._model, "status": status,
            "output": output, "usage": usage, "incomplete_details": incomplete, "error": None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "temperature": body.temperature, "top_p": body.top_p, "top_logprobs": body.top_logprobs,
            "text": {"format": body.text.format}, "reasoning": {"effort": body.reasoning.effort, "summary": None},
            "tools": [], "tool_choice": "none", "parallel_tool_calls": False, "max_tool_calls": body.max_tool_calls,
            "background": False, "store": False, "truncation": "disabled", "previous_response_id": None,
            "service_tier": "auto", "metadata": {}, "user": None,
        }  # fmt: skip
