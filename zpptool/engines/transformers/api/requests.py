# SPDX-License-Identifier: Apache-2.0
"""The requests of the HTTP API: OpenAI's, as far as this engine supports them.

A field either has its effect or is refused by name; no field that would change the answer is ignored. As with OpenAI,
null is the same as an absent field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.messages import Messages, without_empty_fields
from zpptool.engines.transformers.sampling import MAX_PENALTY, MAX_REPETITION_PENALTY, SamplingParams

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "suffix": ("",), "prompt_logprobs": (), "logit_bias": ({},), "min_tokens": (0,),
    "response_format": ({"type": "text"},), "structured_outputs": ({},), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "modalities": (["text"],),
    "use_beam_search": (False,), "include_stop_str_in_output": (False,), "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,), "return_tokens_as_token_ids": (False,), "bad_words": ([],),
    "allowed_token_ids": (), "truncate_prompt_tokens": (), "continue_final_message": (False,), "chat_template": (),
    "chat_template_kwargs": ({},), "documents": ([],), "reasoning_effort": (), "length_penalty": (1,), "priority": (0,),
}  # fmt: skip
"""The fields of features that this engine does not support, and for each the values that do not request the feature."""

IGNORED = frozenset(
    {
        "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
        "cache_salt", "include_reasoning",
    }
)  # fmt: skip
"""Fields that do not affect an answer."""

MAX_PROMPTS = 1024
MAX_ANSWERS = 128
"""Answers to one prompt, as with OpenAI."""
MAX_SEQUENCES = 1024
MAX_STOPS = 128
MAX_LOGPROBS = 20
MAX_STOP_TOKENS = 1024
MAX_DETOKENIZED = 1 << 20
_INT64 = 1 << 63

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
_Several = Field(min_length=1, max_length=MAX_PROMPTS)
Prompts = str | TokenIds | Annotated[list[str], _Several] | Annotated[list[TokenIds], _Several]
Stop = Annotated[str, Field(min_length=1)]
TopLogprobs = Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)]
Penalty = Annotated[float | None, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
Share = Annotated[float | None, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED

    model: str | None = None

    def check(self) -> None:
        """Refuse fields that contradict each other; raises `BadRequest`."""


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(_Strict):
    """The fields that completions and chats have in common."""

    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] = 1
    max_tokens: Annotated[int | None, Field(ge=0)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=-1, lt=_INT64)] = None
    min_p: Share = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    repetition_penalty: Annotated[float | None, Field(ge=1 / MAX_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)] = None
    seed: Annotated[int | None, Field(ge=-_INT64, lt=_INT64)] = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] = []
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS)] = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: _StreamOptions | None = None
    return_token_ids: bool = False

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def num_logprobs(self) -> int | None:
        """How many log probabilities are requested for each token, beside the chosen one's; None for none at all."""
        return None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream has the numbers of tokens."""
        return self.includes_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    def sampling(self, defaults: SamplingParams, seed: int) -> SamplingParams:
        """How to choose the tokens of one sequence.

        Args:
            defaults: for fields that are not given.
            seed: of the sequence.
        """
        names = (
            "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
        )  # fmt: skip
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        top_k = defaults.top_k if self.top_k is None else max(self.top_k, 0)
        return replace(defaults, **given, top_k=top_k, seed=seed, logprobs=self.num_logprobs)

    def check(self) -> None:
        """Refuse fields that contradict each other; raises `BadRequest`."""
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options: they need stream to be true", "stream_options")


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Prompts
    echo: bool = False
    logprobs: TopLogprobs = None
    add_special_tokens: bool = True

    @property
    def num_logprobs(self) -> int | None:
        """As in `GenerationRequest`."""
        return self.logprobs

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as a list also where there is one."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    def check(self) -> None:
        """Refuse fields that contradict each other; raises `BadRequest`."""
        super().check()
        if self.echo and self.logprobs is not None:
            raise BadRequest("echo: this engine has no log probabilities of prompts, so it excludes logprobs", "echo")
        if self.max_tokens == 0 and not self.echo:
            raise BadRequest("max_tokens: 0 is possible with echo only", "max_tokens")
        if len(self.prompts()) * self.n > MAX_SEQUENCES:
            raise BadRequest(f"n: prompts times n exceed {MAX_SEQUENCES}", "n")


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {**UNSUPPORTED, "echo": (False,)}

    messages: Messages
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool = False
    top_logprobs: TopLogprobs = None
    add_generation_prompt: bool = True

    @property
    def num_logprobs(self) -> int | None:
        """As in `GenerationRequest`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        """Refuse fields that contradict each other; raises `BadRequest`."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs: they need logprobs to be true", "top_logprobs")


class TokenizeRequest(_Strict):
    """POST /tokenize: of a prompt, or of a chat."""

    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    def check(self) -> None:
        """Refuse fields that contradict each other; raises `BadRequest`."""
        if (self.prompt is None) == (self.messages is None):
            raise BadRequest("prompt: give either a prompt or messages", "prompt")
        if self.messages is not None and self.add_special_tokens:
            raise BadRequest("add_special_tokens: the chat template adds those of a chat", "add_special_tokens")


class DetokenizeRequest(_Strict):
    """POST /detokenize."""

    tokens: Annotated[list[TokenId], Field(max_length=MAX_DETOKENIZED)]


_Request = TypeVar("_Request", bound=_Strict)


def parse(kind: type[_Request], body: Any) -> _Request:
    """A request from the decoded JSON of its body.

    Raises:
        BadRequest: the body is not such a request; the message names the first field at fault.
    """
    if not isinstance(body, dict):
        raise BadRequest("the body is not a JSON object")
    given = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    for name in kind.unsupported.keys() & given.keys():
        value = given.pop(name)
        if not any(_same(value, neutral) for neutral in kind.unsupported[name]):
            raise BadRequest(f"{name}: not supported by this engine", name)
    if "messages" in given:
        given["messages"] = without_empty_fields(given["messages"])
    try:
        request = kind.model_validate(given)
    except ValidationError as cause:
        raise _refusal(cause) from cause
    request.check()
    return request


def _refusal(cause: ValidationError) -> BadRequest:
    fault = cause.errors(include_url=False)[0]
    field = str(fault["loc"][0]) if fault["loc"] else None
    if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
        return BadRequest(f"{field}: not known to this engine", field)
    return BadRequest(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", field)


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and of one type if one of them is a boolean: `best_of` 1 requests nothing, true is refused."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
