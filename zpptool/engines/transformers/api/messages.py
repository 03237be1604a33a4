# SPDX-License-Identifier: Apache-2.0
"""The messages of a chat, as clients send them and as chat templates take them.

Clients send an assistant's answer back as they received it, with every field that OpenAI's object has. A field that is
null or empty says nothing and counts as absent; one with content that this engine cannot honour is refused by name.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from zpptool.engines.transformers.api.bad_request import BadRequest

TEMPLATE_FIELDS = ("reasoning", "reasoning_content")
"""Fields with text that some chat templates use."""
MAX_MESSAGES = 8192
COMMON_ROLES = ("user", "assistant")
"""Roles that every template knows."""


class _TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class _ImageUrl(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    url: str
    detail: str | None = None


class ImagePart(BaseModel):
    """An image by its URL. `detail` changes nothing, as in vLLM."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["image_url"]
    image_url: _ImageUrl


Part = Annotated[_TextPart | ImagePart, Field(discriminator="type")]


class _Function(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    arguments: str = "{}"


class _ToolCall(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"] = "function"
    id: str | None = None
    index: int | None = None
    function: _Function


class Message(BaseModel):
    """One message of a chat. Other fields than these change nothing, as in vLLM, which keeps those that it knows."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Annotated[str, Field(min_length=1)]
    content: str | list[Part] = ""
    name: str | None = None
    tool_calls: list[_ToolCall] = []
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The text of the content. Several text parts become the lines of one text."""
        return "\n".join(self.texts)

    @property
    def texts(self) -> list[str]:
        """The texts of the content, in order."""
        if isinstance(self.content, str):
            return [self.content]
        return [part.text for part in self.content if isinstance(part, _TextPart)]

    @property
    def image_urls(self) -> list[str]:
        """The URLs of its images, in order."""
        if isinstance(self.content, str):
            return []
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)]


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]


def without_empty_fields(messages: Any) -> Any:
    """The decoded JSON of messages without the fields that are null or empty, in messages and their parts.

    Only an assistant's content may be null (it has called a tool, or said nothing); elsewhere that is left to be
    refused.
    """
    if not isinstance(messages, list):
        return messages
    return [_message(message) if isinstance(message, dict) else message for message in messages]


def for_template(
    messages: list[Message], template: str, *, in_parts: bool = False, image_word: str = ""
) -> list[dict[str, Any]]:
    """The messages for a chat template.

    A developer's message is a system message under its newer name, where the template does not know that name.

    Args:
        messages: of the request.
        template: the template's source.
        in_parts: whether the template takes content as a list of texts and images; otherwise as text.
        image_word: what stands for an image in text; each image of a message gets a line before its text, as in vLLM.

    Raises:
        BadRequest: a message has a field that the template does not use.
    """
    return [
        {
            **_for_template(place, message, template),
            "content": _in_parts(message) if in_parts else _in_lines(message, image_word),
        }
        for place, message in enumerate(messages)
    ]


def check_rendered(messages: list[Message], rendered: str) -> None:
    """Check that the template has not dropped a message, as templates do with roles that they do not know.

    Raises:
        BadRequest: one is missing.
    """
    for place, message in enumerate(messages):
        if message.role not in COMMON_ROLES and not all(text.strip() in rendered for text in message.texts):
            raise BadRequest(
                f"messages.{place}.role: the model's chat template leaves out the messages of the role {message.role}",
                "messages",
            )


def _message(message: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in message.items() if name == "content" or value not in (None, [], {}, "")}
    if message.get("role") == "assistant" and message.get("content", "") is None:
        kept["content"] = ""
    if isinstance(kept.get("content"), list):
        kept["content"] = [_part(part) if isinstance(part, dict) else part for part in kept["content"]]
    return kept


def _part(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if value is not None}


def _for_template(place: int, message: Message, template: str) -> dict[str, Any]:
    names = ("name", "tool_call_id", *TEMPLATE_FIELDS)
    extras: dict[str, Any] = {name: value for name in names if (value := getattr(message, name)) is not None}
    if message.tool_calls:
        extras["tool_calls"] = [_call_for_template(place, call) for call in message.tool_calls]
    for name in ("tool_calls", *TEMPLATE_FIELDS):
        if name in extras and name not in template:
            raise BadRequest(f"messages.{place}.{name}: the model's chat template does not use it", "messages")
    role = "system" if message.role == "developer" and "developer" not in template else message.role
    return {"role": role, **extras}


def _in_parts(message: Message) -> list[dict[str, Any]]:
    """The content as templates of models that take images expect it; they write what stands for an image."""
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}]
    return [
        {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
        for part in message.content
    ]


def _in_lines(message: Message, image_word: str) -> str:
    """The content as text."""
    return "\n".join([*[image_word] * len(message.image_urls), *message.texts])


def _call_for_template(place: int, call: _ToolCall) -> dict[str, Any]:
    """The call with its arguments as an object, which is what templates expect; clients send them as JSON text."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError as cause:
        raise BadRequest(f"messages.{place}.tool_calls: the arguments are not JSON: {cause}", "messages") from cause
    return {"id": call.id, "type": call.type, "function": {"name": call.function.name, "arguments": arguments}}
