# SPDX-License-Identifier: Apache-2.0
"""A chat, and what a request sets for the template that renders it."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.messages import Messages
from zpptool.engines.transformers.api.request_base import Strict

RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
"""Names that transformers' function takes for itself, so a request cannot set them for the template."""


class ChatPrompt(Strict):
    """The fields that determine the prompt of a chat; part of several requests.

    A value for a variable that the model's template does not use changes nothing, as in vLLM.
    """

    messages: Messages
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    documents: list[dict[str, str]] | None = None
    reasoning_effort: str | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] | None = None

    def check(self) -> None:
        """Refuse fields that contradict each other, and tools that the model may call; raises `BadRequest`."""
        super().check()
        if self.continue_final_message and self.add_generation_prompt:
            raise BadRequest(
                "add_generation_prompt: it cannot be true together with continue_final_message", "add_generation_prompt"
            )
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise BadRequest("continue_final_message: the last message is not an assistant's", "continue_final_message")
        if self.tools and self.tool_choice != "none":
            raise BadRequest("tools: this engine finds no tool calls in answers; set tool_choice to none", "tools")
        if self.tool_choice not in (None, "none", "auto"):
            raise BadRequest("tool_choice: this engine finds no tool calls in answers", "tool_choice")
        for name in self.chat_template_kwargs.keys() & RESERVED:
            raise BadRequest(f"chat_template_kwargs.{name}: it is not for a request to set", "chat_template_kwargs")

    def template_variables(self) -> dict[str, Any]:
        """What the template gets besides the messages."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return {"documents": self.documents, "tools": self.tools or None, **effort, **self.chat_template_kwargs}
