# SPDX-License-Identifier: Apache-2.0
"""Generates answers: the tokens of a prompt become pieces of text, those of several sequences in parallel.

The tokens of each sequence are generated one after the other on a thread of the pool, so a request has as many
sequences in flight as it has answers. When the client disconnects, its answers are cancelled and their sequences ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from starlette.concurrency import run_in_threadpool

from zpptool.engines.transformers.api.served import ServedModel
from zpptool.engines.transformers.api.textstream import TextStream
from zpptool.engines.transformers.media import Media
from zpptool.engines.transformers.sampling import Choice, SamplingParams


@dataclass
class Answer:
    """An answer, or a piece of one.

    Attributes:
        text: without stop strings and special tokens.
        choices: the tokens, with the one that ended the answer, if one did.
        finish_reason: `stop` or `length`; None while the answer is incomplete.
        stop_reason: the stop string or the token of `stop_token_ids` that ended it; None for any other reason.
    """

    text: str = ""
    choices: list[Choice] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def token_ids(self) -> list[int]:
        """The ids of the tokens."""
        return [choice.token for choice in self.choices]

    def add(self, piece: Answer) -> None:
        """Append the next piece."""
        self.text += piece.text
        self.choices += piece.choices
        self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason


@dataclass(frozen=True)
class Question:
    """What one sequence is generated for.

    Attributes:
        prompt_ids: the prompt's token ids.
        max_tokens: the greatest number of tokens of the answer; 0 for an answer without tokens.
        sampling: how its tokens are chosen.
        stops: the text ends before the first of these.
        stop_token_ids: the answer ends with the first of these tokens.
        ignore_eos: whether it goes on after the model's own end tokens.
        min_tokens: stop strings do not end the answer before it has as many tokens.
        keep_stop: whether the text ends after the stop string rather than before it.
        skip_special_tokens: whether the text has no special tokens.
        media: what the processor made of the prompt's images; None without images.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    sampling: SamplingParams
    stops: Sequence[str] = ()
    stop_token_ids: Collection[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    keep_stop: bool = False
    skip_special_tokens: bool = True
    media: Media | None = None


async def answer_one(served: ServedModel, question: Question) -> AsyncGenerator[Answer, None]:
    """The answer to one question, one piece for each token."""
    if not question.max_tokens:
        yield Answer(finish_reason="length")
        return
    eos_ids = frozenset() if question.ignore_eos else served.eos_ids
    stop_ids = eos_ids.union(question.stop_token_ids)
    decode = partial(served.decode, skip_special_tokens=question.skip_special_tokens)
    stream = TextStream(decode, question.prompt_ids, question.stops, keep_stop=question.keep_stop)
    sequence = served.generate(question.prompt_ids, question.max_tokens, stop_ids, question.sampling, question.media)
    try:
        count = 0
        while (choice := await run_in_threadpool(next, sequence, None)) is not None:
            count += 1
            if choice.token in stop_ids:
                text = stream.add(choice.token) if question.keep_stop else ""
                yield Answer(text + stream.end(), [choice], "stop", None if choice.token in eos_ids else choice.token)
                return
            text = stream.add(choice.token, may_stop=count > question.min_tokens)
            is_last = count == question.max_tokens
            if is_last and stream.stopped_by is None:
                text += stream.end()
            if stream.stopped_by is not None:
                yield Answer(text, [choice], "stop", stream.stopped_by)
                return
            yield Answer(text, [choice], "length" if is_last else None)
    finally:
        sequence.close()


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
