# SPDX-License-Identifier: Apache-2.0
"""The context length: how long a prompt may be, and how many tokens an answer to it may have.

Client libraries recognise a prompt that is too long by vLLM's and OpenAI's words, so errors begin with these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zpptool.engines.transformers.api.bad_request import BadRequest


@dataclass(frozen=True)
class ContextLength:
    """The limits of one model.

    Attributes:
        tokens: the greatest number of tokens of prompt and answer together.
        chars_per_token: no token stands for more characters.
    """

    tokens: int
    chars_per_token: int

    def check_text(self, num_chars: int, param: str) -> None:
        """Refuse a text that cannot fit, whatever its tokens are. So a long text is refused before it is tokenised."""
        most = self.tokens * self.chars_per_token
        if num_chars > most:
            raise self._error(
                f"your prompt has {num_chars} characters (more than {most}, which {self.tokens} tokens can have at"
                " most)",
                param,
            )

    def check_prompt(self, prompt: Sequence[Any], param: str, *, room: int) -> None:
        """Refuse a prompt that leaves no room for an answer.

        Args:
            prompt: token ids.
            param: the field of the request that it comes from.
            room: tokens that have to remain.
        """
        if len(prompt) + room > self.tokens:
            raise self._error(
                f"your prompt has {len(prompt)} input tokens, which leaves no room for any output tokens", param
            )

    def clamp(self, max_tokens: int | None, prompt: Sequence[int]) -> int:
        """The greatest number of tokens of an answer: what is requested, at most what the prompt leaves; by default
        all of that."""
        available = self.tokens - len(prompt)
        return available if max_tokens is None else min(max_tokens, available)

    def _error(self, however: str, param: str) -> BadRequest:
        return BadRequest(
            f"This model's maximum context length is {self.tokens} tokens. However, {however}. Please reduce the"
            " length of the input prompt.",
            param,
        )
