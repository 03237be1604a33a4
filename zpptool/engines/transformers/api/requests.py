# SPDX-License-Identifier: Apache-2.0
"""The requests of the HTTP API: OpenAI's, as far as this engine supports them.

A field either has its effect or is refused by name; no field that would change the answer is ignored. As with OpenAI,
null is the same as an absent field.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zpptool.engines.transformers.sampling import SamplingParams

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (),
    "prompt_logprobs": (), "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,),
    "logit_bias": ({},), "min_p": (0,), "min_tokens": (0,), "response_format": ({"type": "text"},),
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none",),
    "modalities": (["text"],), "use_beam_search": (False,), "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
}  # fmt: skip
"""The fields of features that this engine does not support, and for each the values that do not request the feature."""

IGNORED = frozenset({"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"})
"""Fields that do not affect an answer."""

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Prompts = str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1)]


class BadRequest(Exception):
    """A request that cannot be answered.

    Attributes:
        message: what is wrong, one sentence.
        param: the field at fault.
        status: the HTTP status of the response.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None


class _TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: str | list[_TextPart]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """The message as chat templates take it. Several text parts become the lines of one text."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": text, **named}


Messages = Annotated[list[Message], Field(min_length=1)]


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class GenerationRequest(_Strict):
    """The fields that completions and chats have in common."""

    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: Stop | list[Stop] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    return_token_ids: bool = False

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def sampling(self) -> SamplingParams:
        """How to choose the tokens of one prompt; without a seed in the request, with a random one."""
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return SamplingParams(self.temperature, max(self.top_k, 0), self.top_p, seed)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Prompts
    add_special_tokens: bool = True

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as a list also where there is one."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    add_generation_prompt: bool = True


class TokenizeRequest(_Strict):
    """POST /tokenize: of a prompt, or of a chat."""

    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


_Request = TypeVar("_Request", bound=_Strict)


def parse(kind: type[_Request], body: Any) -> _Request:
    """A request from the decoded JSON of its body.

    Raises:
        BadRequest: the body is not such a request; the message names the first field at fault.
    """
    if not isinstance(body, dict):
        raise BadRequest("the body is not a JSON object")
    given = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    for name in UNSUPPORTED.keys() & given.keys():
        value = given.pop(name)
        if not any(_same(value, neutral) for neutral in UNSUPPORTED[name]):
            raise BadRequest(f"{name}: not supported by this engine", name)
    try:
        return kind.model_validate(given)
    except ValidationError as cause:
        fault = cause.errors(include_url=False)[0]
        field = str(fault["loc"][0]) if fault["loc"] else None
        if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
            raise BadRequest(f"{field}: not known to this engine", field) from cause
        raise BadRequest(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", field) from cause


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and of one type if one of them is a boolean: `logprobs` 0 requests something, false does not."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
