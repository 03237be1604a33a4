# SPDX-License-Identifier: Apache-2.0
"""POST /v1/responses: OpenAI's Responses API, for text. Nothing is stored, as with vLLM by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.chat_prompt import ChatPrompt
from zpptool.engines.transformers.api.messages import MAX_MESSAGES
from zpptool.engines.transformers.api.request_base import UNSUPPORTED, parse
from zpptool.engines.transformers.api.requests import GenerationRequest, TopLogprobs

WITH_LOGPROBS = "message.output_text.logprobs"
"""In `include`, it requests log probabilities."""
_TEXT_PARTS = ("input_text", "output_text", "text")


class _Text(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    format: dict[str, Any] = Field(default_factory=lambda: {"type": "text"})


class _Reasoning(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    effort: str | None = None


class ResponseRequest(GenerationRequest):
    """The fields of a response.

    `max_tool_calls` and `parallel_tool_calls` change nothing, because the engine calls no tools.
    """

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED, "previous_response_id": (), "background": (False,), "conversation": (), "prompt": (),
        "truncation": ("disabled",), "tools": ([],), "tool_choice": ("none", "auto"),
    }  # fmt: skip

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, Field(ge=1)] = None
    max_tool_calls: int | None = None
    top_logprobs: TopLogprobs = 0
    include: list[Literal["message.output_text.logprobs"]] = Field(default_factory=list)
    text: _Text = Field(default_factory=_Text)
    reasoning: _Reasoning = Field(default_factory=_Reasoning)

    @property
    def num_logprobs(self) -> int | None:
        """As in `GenerationRequest`."""
        return self.top_logprobs or 0 if WITH_LOGPROBS in self.include else None

    def check(self) -> None:
        """Refuse fields that contradict each other or ask for more than text; raises `BadRequest`."""
        super().check()
        if self.n != 1:
            raise BadRequest("n: a response has one answer", "n")
        if self.text.format.get("type") != "text":
            raise BadRequest("text.format: this engine has text only", "text")

    def chat(self) -> ChatPrompt:
        """The chat that the instructions and the input make up.

        Raises:
            BadRequest: an item of the input is not a message with text, a tool call, or a tool's result.
        """
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        messages = [_message(place, item) for place, item in enumerate(items)]
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
        effort = {} if self.reasoning.effort is None else {"reasoning_effort": self.reasoning.effort}
        return parse(ChatPrompt, {"messages": messages, **effort})


def _message(place: int, item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type") or "message"
    if kind == "message" and isinstance(item.get("role"), str):
        return {"role": item["role"], "content": _content(place, item.get("content"))}
    if kind == "function_call":
        call = {"id": item.get("call_id"), "function": {"name": item.get("name"), "arguments": item.get("arguments")}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output" and isinstance(item.get("output"), str):
        return {"role": "tool", "content": item["output"], "tool_call_id": item.get("call_id")}
    raise BadRequest(f"input.{place}: this engine takes messages, function calls and their outputs as text", "input")


def _content(place: int, content: Any) -> Any:
    """The content of a message as parts of a chat."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not (isinstance(part, dict) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str)):
            raise BadRequest(f"input.{place}.content: this engine takes text only", "input")
    return [{"type": "text", "text": part["text"]} for part in content]
