# SPDX-License-Identifier: Apache-2.0
"""The JSON of answers: OpenAI's objects, whole or in chunks, with vLLM's `token_ids` where requested."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from zpptool.engines.transformers.api.answer import Answer
from zpptool.engines.transformers.api.logprobs import TokenText, chat_logprobs, completion_logprobs
from zpptool.engines.transformers.sampling import Choice


@dataclass(frozen=True)
class ShapeOptions:
    """What a response contains.

    Attributes:
        model: the name under which the model is served.
        prompts: token ids.
        text_of: converts a token to text, for log probabilities.
        per_prompt: the number of answers to each prompt; they follow one another.
        echoed: texts that precede the answers, one for each prompt; empty for none.
        with_token_ids: whether it has token ids.
        with_logprobs: whether it has log probabilities.
        continuous_usage: whether each chunk has the numbers of tokens so far.
    """

    model: str
    prompts: Sequence[Sequence[int]]
    text_of: TokenText
    per_prompt: int = 1
    echoed: Sequence[str] = ()
    with_token_ids: bool = False
    with_logprobs: bool = False
    continuous_usage: bool = False


class Shape(ABC):
    """One response.

    Attributes:
        answers: what was generated so far, for each sequence.

    Args:
        options: what it contains.
    """

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, options: ShapeOptions) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": options.model}
        self._options = options
        self._begun: set[int] = set()
        self._new_tokens = 0
        self.answers = [Answer() for _ in range(len(options.prompts) * options.per_prompt)]

    def whole(self) -> dict[str, Any]:
        """The response with every answer."""
        self._new_tokens = sum(len(answer.choices) for answer in self.answers)
        choices = [
            self._choice(index, answer, self._whole(index, answer), with_prompt=True)
            for index, answer in enumerate(self.answers)
        ]
        return {**self._object(self.whole_object, choices, self._usage()), **self._top_fields(with_prompt=True)}

    def chunk(self, index: int, piece: Answer) -> dict[str, Any]:
        """The event with the next piece of one answer."""
        first = index not in self._begun
        first_of_all = not self._begun
        self._begun.add(index)
        self._new_tokens += len(piece.choices)
        choice = self._choice(index, piece, self._part(index, piece, first=first), with_prompt=first)
        usage = self._usage() if self._options.continuous_usage else None
        return {**self._object(self.chunk_object, [choice], usage), **self._top_fields(with_prompt=first_of_all)}

    def usage_chunk(self) -> dict[str, Any]:
        """The event with the numbers of tokens."""
        return self._object(self.chunk_object, [], self._usage())

    def _object(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": choices, "usage": usage}

    def _usage(self) -> dict[str, Any]:
        prompt_tokens = sum(map(len, self._options.prompts))
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self._new_tokens,
            "total_tokens": prompt_tokens + self._new_tokens,
            "prompt_tokens_details": None,
        }

    def _choice(self, index: int, answer: Answer, content: dict[str, Any], *, with_prompt: bool) -> dict[str, Any]:
        has_logprobs = self._options.with_logprobs and answer.choices
        return {
            "index": index,
            **content,
            "logprobs": self._logprobs(index, answer.choices) if has_logprobs else None,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
            "token_ids": answer.token_ids if self._options.with_token_ids else None,
            **self._choice_fields(index, with_prompt=with_prompt),
        }

    def _prompt_ids(self, index: int) -> list[int] | None:
        """The prompt of a sequence, where token ids were requested."""
        options = self._options
        return list(options.prompts[index // options.per_prompt]) if options.with_token_ids else None

    @abstractmethod
    def _whole(self, index: int, answer: Answer) -> dict[str, Any]:
        """The fields of a choice that hold a whole answer."""

    @abstractmethod
    def _part(self, index: int, piece: Answer, *, first: bool) -> dict[str, Any]:
        """The fields of a choice that hold a piece of an answer."""

    @abstractmethod
    def _logprobs(self, index: int, choices: list[Choice]) -> dict[str, Any]:
        """The log probabilities of an answer's tokens, or of the next ones."""

    @abstractmethod
    def _choice_fields(self, index: int, *, with_prompt: bool) -> dict[str, Any]:
        """Further fields of a choice."""

    @abstractmethod
    def _top_fields(self, *, with_prompt: bool) -> dict[str, Any]:
        """Further fields beside the choices."""


class Completion(Shape):
    """The response of /v1/completions."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, options: ShapeOptions) -> None:
        super().__init__(options)
        self._offsets = [len(self._echoed(index)) for index in range(len(self.answers))]

    def _whole(self, index: int, answer: Answer) -> dict[str, Any]:
        return {"text": self._echoed(index) + answer.text}

    def _part(self, index: int, piece: Answer, *, first: bool) -> dict[str, Any]:
        return {"text": self._echoed(index) + piece.text if first else piece.text}

    def _logprobs(self, index: int, choices: list[Choice]) -> dict[str, Any]:
        logprobs = completion_logprobs(choices, self._options.text_of, self._offsets[index])
        self._offsets[index] += sum(map(len, logprobs["tokens"]))
        return logprobs

    def _choice_fields(self, index: int, *, with_prompt: bool) -> dict[str, Any]:
        return {"prompt_token_ids": self._prompt_ids(index) if with_prompt else None, "prompt_logprobs": None}

    def _top_fields(self, *, with_prompt: bool) -> dict[str, Any]:
        return {}

    def _echoed(self, index: int) -> str:
        return self._options.echoed[index // self._options.per_prompt] if self._options.echoed else ""


class Chat(Shape):
    """The response of /v1/chat/completions."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _whole(self, index: int, answer: Answer) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": answer.text}}

    def _part(self, index: int, piece: Answer, *, first: bool) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": piece.text} if first else {"content": piece.text}}

    def _logprobs(self, index: int, choices: list[Choice]) -> dict[str, Any]:
        return chat_logprobs(choices, self._options.text_of)

    def _choice_fields(self, index: int, *, with_prompt: bool) -> dict[str, Any]:
        return {}

    def _top_fields(self, *, with_prompt: bool) -> dict[str, Any]:
        return {"prompt_token_ids": self._prompt_ids(0), "prompt_logprobs": None} if with_prompt else {}
