# SPDX-License-Identifier: Apache-2.0
"""From a request and its prompts to the pieces of its answers."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from zpptool.engines.transformers.api.answer import Answer, Question, answer_all, answer_one
from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.counts import Counts
from zpptool.engines.transformers.api.prompt_encoder import PromptEncoder
from zpptool.engines.transformers.api.requests import GenerationRequest
from zpptool.engines.transformers.api.rule_fields import token_rules
from zpptool.engines.transformers.api.served import ServedModel
from zpptool.engines.transformers.media import Media

Pieces = AsyncGenerator[tuple[int, Answer], None]
"""The pieces of several answers, each with the index of its answer."""


class Generation:
    """Generates answers for all routes, and counts them.

    Args:
        served: the model.
        encoder: its tokenizer.
        counts: of all routes.
    """

    def __init__(self, served: ServedModel, encoder: PromptEncoder, counts: Counts) -> None:
        self._served = served
        self._encoder = encoder
        self._counts = counts

    def check_model(self, name: str | None) -> None:
        """Refuse the name of another model; raises `BadRequest` (404)."""
        if name not in (None, self._served.name):
            raise BadRequest(f"model: there is no {name} here, only {self._served.name}", "model", 404)

    def check_prompts(self, prompts: list[list[int]], param: str, *, room: int) -> None:
        """Refuse prompts that are too long or not the model's.

        Args:
            prompts: token ids.
            param: the field that they come from.
            room: the tokens of an answer for which each has to leave room.

        Raises:
            BadRequest: naming `param`.
        """
        for prompt in prompts:
            if not prompt:
                raise BadRequest(f"{param}: it has no tokens", param)
            if max(prompt) >= self._served.vocab_size:
                raise BadRequest(f"{param}: {max(prompt)} is not a token of this model", param)
            self._served.context.check_prompt(prompt, param, room=room)

    async def start(
        self, body: GenerationRequest, prompts: list[list[int]], max_tokens: int | None, media: Media | None = None
    ) -> Pieces:
        """Begin `body.n` answers to each prompt; close the pieces, or use them up.

        The answers to one prompt have successive seeds, as in vLLM.

        Args:
            body: how tokens are chosen and answers end.
            prompts: token ids, checked.
            max_tokens: of each answer; None for as many as the context has room for.
            media: what the processor made of the images, where there is one prompt with images.

        Raises:
            BadRequest: a field does not fit the model.
        """
        rules = await token_rules(body, self._served, self._encoder)
        questions = [
            Question(
                prompt,
                self._served.context.clamp(max_tokens, prompt),
                replace(body.sampling(self._served.defaults.sampling, _nth_seed(body.seed, number)), rules=rules),
                body.stops,
                body.stop_token_ids,
                body.ignore_eos,
                body.min_tokens,
                body.include_stop_str_in_output,
                body.skip_special_tokens,
                media,
            )
            for prompt in prompts
            for number in range(body.n)
        ]
        self._counts.requests += 1
        self._counts.prompt_tokens += sum(map(len, prompts))
        return self._counted(answer_all([answer_one(self._served, question) for question in questions]))

    async def _counted(self, pieces: Pieces) -> Pieces:
        """The same pieces, counted."""
        self._counts.in_progress += 1
        try:
            async with aclosing(pieces):
                async for index, piece in pieces:
                    self._counts.generation_tokens += len(piece.choices)
                    yield index, piece
        finally:
            self._counts.in_progress -= 1


def _nth_seed(seed: int | None, number: int) -> int:
    """The seed of the n-th answer to a prompt, in 64 bits; a random one where the request has none."""
    if seed is None:
        return secrets.randbits(63)
    return (seed + number + (1 << 63)) % (1 << 64) - (1 << 63)
