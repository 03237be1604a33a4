# SPDX-License-Identifier: Apache-2.0
"""The requests of the HTTP API: OpenAI's, as far as this engine supports them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.chat_prompt import ChatPrompt
from zpptool.engines.transformers.api.request_base import UNSUPPORTED, Strict
from zpptool.engines.transformers.sampling import MAX_PENALTY, MAX_REPETITION_PENALTY, SamplingParams

MAX_PROMPTS = 1024
MAX_ANSWERS = 128
"""Answers to one prompt, as with OpenAI."""
MAX_SEQUENCES = 1024
MAX_STOPS = 128
MAX_LOGPROBS = 20
MAX_STOP_TOKENS = 1024
MAX_BIASED = 1024
MAX_BAD_WORDS = 128
MAX_BIAS = 100.0
"""A bias beyond this, in either direction, counts as this, as in vLLM."""
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


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(Strict):
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
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] = Field(default_factory=list)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=MAX_STOP_TOKENS)
    ignore_eos: bool = False
    logit_bias: dict[str, float] = Field(default_factory=dict, max_length=MAX_BIASED)
    allowed_token_ids: TokenIds | None = None
    bad_words: list[Stop] = Field(default_factory=list, max_length=MAX_BAD_WORDS)
    min_tokens: Annotated[int, Field(ge=0)] = 0
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_tokens_as_token_ids: bool = False
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
        super().check()
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options: they need stream to be true", "stream_options")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise BadRequest(f"min_tokens: {self.min_tokens} is more than max_tokens {self.max_tokens}", "min_tokens")


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


class ChatRequest(ChatPrompt, GenerationRequest):
    """POST /v1/chat/completions."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {**UNSUPPORTED, "echo": (False,)}

    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool = False
    top_logprobs: TopLogprobs = None

    @property
    def num_logprobs(self) -> int | None:
        """As in `GenerationRequest`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        """Refuse fields that contradict each other; raises `BadRequest`."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs: they need logprobs to be true", "top_logprobs")


class TokenizeRequest(Strict):
    """POST /tokenize of a prompt."""

    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatRequest(ChatPrompt):
    """POST /tokenize of a chat."""

    return_token_strs: bool = False


class DetokenizeRequest(Strict):
    """POST /detokenize."""

    tokens: Annotated[list[TokenId], Field(max_length=MAX_DETOKENIZED)]
