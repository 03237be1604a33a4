# SPDX-License-Identifier: Apache-2.0
"""The JSON of answers: OpenAI's objects, whole or in chunks, with vLLM's `token_ids` where requested."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from zpptool.engines.transformers.api.answer import Answer


class Shape(ABC):
    """One response.

    Attributes:
        answers: what was generated so far, for each prompt.

    Args:
        model: the name under which it is served.
        prompts: token ids.
        with_token_ids: whether the response has token ids.
    """

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, model: str, prompts: Sequence[list[int]], with_token_ids: bool) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._prompts = prompts
        self._with_token_ids = with_token_ids
        self._begun: set[int] = set()
        self._new_tokens = 0
        self.answers = [Answer() for _ in prompts]

    def whole(self) -> dict[str, Any]:
        """The response with every answer."""
        self._new_tokens = sum(len(answer.token_ids) for answer in self.answers)
        choices = [self._choice(index, answer, self._whole(answer)) for index, answer in enumerate(self.answers)]
        return self._object(self.whole_object, choices, self._usage())

    def chunk(self, index: int, piece: Answer) -> dict[str, Any]:
        """The event with the next piece of one answer."""
        first = index not in self._begun
        self._begun.add(index)
        self._new_tokens += len(piece.token_ids)
        choice = self._choice(index, piece, self._part(piece, first=first), with_prompt=first)
        return self._object(self.chunk_object, [choice], None)

    def usage_chunk(self) -> dict[str, Any]:
        """The event with the numbers of tokens."""
        return self._object(self.chunk_object, [], self._usage())

    def _object(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": choices, "usage": usage}

    def _usage(self) -> dict[str, int]:
        prompt_tokens = sum(map(len, self._prompts))
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self._new_tokens,
            "total_tokens": prompt_tokens + self._new_tokens,
        }

    def _choice(
        self, index: int, answer: Answer, content: dict[str, Any], *, with_prompt: bool = True
    ) -> dict[str, Any]:
        token_ids = {
            "token_ids": answer.token_ids if self._with_token_ids else None,
            "prompt_token_ids": self._prompts[index] if self._with_token_ids and with_prompt else None,
        }
        ended = {"finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}
        return {"index": index, **content, "logprobs": None, **ended, **token_ids}

    @abstractmethod
    def _whole(self, answer: Answer) -> dict[str, Any]:
        """The fields of a choice that hold a whole answer."""

    @abstractmethod
    def _part(self, piece: Answer, *, first: bool) -> dict[str, Any]:
        """The fields of a choice that hold a piece of an answer."""


class Completion(Shape):
    """The response of /v1/completions."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def _whole(self, answer: Answer) -> dict[str, Any]:
        return {"text": answer.text}

    def _part(self, piece: Answer, *, first: bool) -> dict[str, Any]:
        return {"text": piece.text}


class Chat(Shape):
    """The response of /v1/chat/completions."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _whole(self, answer: Answer) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": answer.text}}

    def _part(self, piece: Answer, *, first: bool) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": piece.text} if first else {"content": piece.text}}
