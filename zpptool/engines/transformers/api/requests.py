# SPDX-License-Identifier: Apache-2.0
"""What may be asked over HTTP: OpenAI's requests, as far as this engine can honour them.

A field either does what it says or is refused by name; none that would change the answer is ignored. null counts as
not given, as with OpenAI.
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
"""What this engine does not do, and for each the values that do not ask for it."""

IGNORED = frozenset({"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"})
"""What has no bearing on an answer."""

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Prompts = str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1)]


class BadRequest(Exception):
    """A request that cannot be honoured.

    Attributes:
        message: what is wrong, one sentence.
        param: the field at fault.
        status: of the HTTP answer.
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
        """The message as chat templates take it: several parts of text are lines of one."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": text, **named}


Messages = Annotated[list[Message], Field(min_length=1)]


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class GenerationRequest(_Strict):
    """How to answer; what completions and chats have in common."""

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
        """How to choose the tokens of one prompt; without a seed, as chance will have it."""
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return SamplingParams(self.temperature, max(self.top_k, 0), self.top_p, seed)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Prompts
    add_special_tokens: bool = True

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, however many were given."""
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
        BadRequest: it is none; the first field at fault is named.
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
        name = str(fault["loc"][0]) if fault["loc"] else None
        if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
            raise BadRequest(f"{name}: not known to this engine", name) from cause
        raise BadRequest(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", name) from cause


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and not a number in the place of a truth value: `logprobs` 0 asks for something, false does not."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
