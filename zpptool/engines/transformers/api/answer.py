# SPDX-License-Identifier: Apache-2.0
"""Generates answers: the tokens of a prompt become pieces of text, those of several prompts in parallel.

The tokens of each prompt are generated one after the other on a thread of the pool, so a request has as many sequences
in flight as it has prompts. When the client disconnects, its answers are cancelled and their sequences ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from zpptool.engines.transformers.api.requests import GenerationRequest
from zpptool.engines.transformers.api.served import ServedModel
from zpptool.engines.transformers.api.textstream import TextStream


@dataclass
class Answer:
    """An answer, or a piece of one.

    Attributes:
        text: without stop strings and special tokens.
        token_ids: includes the token that ended the answer, if one did.
        finish_reason: `stop` or `length`; None while the answer is incomplete.
        stop_reason: the stop string or the token of `stop_token_ids` that ended it; None for any other reason.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, piece: Answer) -> None:
        """Append the next piece."""
        self.text += piece.text
        self.token_ids += piece.token_ids
        self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason


async def answer_one(
    served: ServedModel, prompt_ids: Sequence[int], max_tokens: int, request: GenerationRequest
) -> AsyncGenerator[Answer, None]:
    """The answer to one prompt, one piece for each token."""
    eos_ids = frozenset() if request.ignore_eos else served.eos_ids
    stop_ids = eos_ids.union(request.stop_token_ids)
    stream = TextStream(served.decode, prompt_ids, request.stops)
    tokens = served.generate(prompt_ids, max_tokens, stop_ids, request.sampling())
    try:
        count = 0
        while (token := await run_in_threadpool(next, tokens, None)) is not None:
            count += 1
            if token in stop_ids:
                yield Answer(stream.end(), [token], "stop", None if token in eos_ids else token)
                return
            text = stream.add(token)
            if count == max_tokens and stream.stopped_by is None:
                text += stream.end()
            if stream.stopped_by is not None:
                yield Answer(text, [token], "stop", stream.stopped_by)
                return
            yield Answer(text, [token], "length" if count == max_tokens else None)
    finally:
        tokens.close()


async def answer_all(answers: Sequence[AsyncGenerator[Answer, None]]) -> AsyncGenerator[tuple[int, Answer], None]:
    """Generate all answers in parallel; yields each piece with the index of its answer, in the order of generation.

    Raises:
        Exception: the error of the first answer that fails; the others are then cancelled.
    """
    pieces: asyncio.Queue[tuple[int, Answer | Exception | None]] = asyncio.Queue()

    async def drain(index: int, answer: AsyncGenerator[Answer, None]) -> None:
        try:
            async with aclosing(answer):
                async for piece in answer:
                    pieces.put_nowait((index, piece))
            pieces.put_nowait((index, None))
        except Exception as cause:
            pieces.put_nowait((index, cause))

    tasks = [asyncio.create_task(drain(index, answer)) for index, answer in enumerate(answers)]
    unfinished = len(tasks)
    try:
        while unfinished:
            index, piece = await pieces.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                unfinished -= 1
            else:
                yield index, piece
    finally:
        for task in tasks:
            task.cancel()
