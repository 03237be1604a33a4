# SPDX-License-Identifier: Apache-2.0
"""The HTTP API of the embedded engine: the part of the OpenAI API that comparisons and first trials need.

The pipeline and the unsplit model are served by the same code. Answers have OpenAI's format, and vLLM's names for what
OpenAI does not have (`/tokenize`, `return_token_ids`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from zpptool.engines.transformers.api import shapes
from zpptool.engines.transformers.api.bad_request import BadRequest, error_body, refuse
from zpptool.engines.transformers.api.body import MAX_BODY_BYTES, MAX_BODY_BYTES_WITH_IMAGES, read_json
from zpptool.engines.transformers.api.counts import Counts
from zpptool.engines.transformers.api.disconnect import unless_disconnected
from zpptool.engines.transformers.api.generation import Generation, Pieces
from zpptool.engines.transformers.api.information import Information
from zpptool.engines.transformers.api.prompt_encoder import PromptEncoder
from zpptool.engines.transformers.api.request_base import parse
from zpptool.engines.transformers.api.requests import ChatRequest, CompletionRequest, GenerationRequest
from zpptool.engines.transformers.api.responses import Responses
from zpptool.engines.transformers.api.served import ServedModel
from zpptool.engines.transformers.media import Media
from zpptool.errors import ZppError

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat may continue up to the model's limit."""


class Front:
    """The routes of one served model."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._chat_bytes = MAX_BODY_BYTES if isinstance(served.processor, str) else MAX_BODY_BYTES_WITH_IMAGES
        self._counts = Counts()
        self._encoder = PromptEncoder(served.tokenizer, served.context, served.processor, served.image_source)
        self._generation = Generation(served, self._encoder, self._counts)

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                *Information(self._served, self._encoder, self._counts).routes(),
                *Responses(self._served, self._encoder, self._generation).routes(),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ],
            exception_handlers={BadRequest: refuse, ZppError: self._fail},
        )

    async def completions(self, request: Request) -> Response:
        """Complete one prompt or several."""
        content = await read_json(request)
        self._check_length(content)
        body = parse(CompletionRequest, content)
        self._generation.check_model(body.model)
        return await unless_disconnected(request, self._complete(body))

    async def chat(self, request: Request) -> Response:
        """Answer a chat."""
        body = parse(ChatRequest, await read_json(request, self._chat_bytes))
        self._generation.check_model(body.model)
        return await unless_disconnected(request, self._chat(body))

    async def _complete(self, body: CompletionRequest) -> Response:
        given = body.prompts()
        for prompt in given:
            if isinstance(prompt, str):
                self._served.context.check_text(len(prompt), "prompt")
        prompts: list[list[int]] = []
        for prompt in given:
            if isinstance(prompt, str):
                prompt = await self._encoder.text(prompt, add_special_tokens=body.add_special_tokens)
                self._served.context.check_prompt(prompt, "prompt", room=0)
            prompts.append(prompt)
        max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        self._generation.check_prompts(prompts, "prompt", room=min(max_tokens, 1))
        echoed = [
            prompt if isinstance(prompt, str) else await self._encoder.decode(prompt)
            for prompt in (given if body.echo else ())
        ]
        return await self._answer(body, shapes.Completion, prompts, max_tokens, echoed)

    async def _chat(self, body: ChatRequest) -> Response:
        chat = await self._encoder.chat(body)
        prompts = [chat.token_ids]
        self._generation.check_prompts(prompts, "messages", room=1)
        limit = body.max_completion_tokens or body.max_tokens or self._served.defaults.max_new_tokens
        return await self._answer(body, shapes.Chat, prompts, limit, media=chat.media)

    async def _answer(
        self,
        body: GenerationRequest,
        shape: type[shapes.Shape],
        prompts: list[list[int]],
        max_tokens: int | None,
        echoed: Sequence[str] = (),
        media: Media | None = None,
    ) -> Response:
        shaped = shape(
            shapes.ShapeOptions(
                self._served.name,
                prompts,
                _token_name if body.return_tokens_as_token_ids else self._served.token_text,
                per_prompt=body.n,
                echoed=echoed,
                with_token_ids=body.return_token_ids,
                with_logprobs=body.num_logprobs is not None,
                continuous_usage=body.continuous_usage,
            )
        )
        pieces = await self._generation.start(body, prompts, max_tokens, media)
        if body.stream:
            events = self._events(pieces, shaped, with_usage=body.includes_usage)
            return StreamingResponse(events, media_type="text/event-stream")
        async with aclosing(pieces):
            async for index, piece in pieces:
                shaped.answers[index].add(piece)
        return JSONResponse(shaped.whole())

    async def _events(self, pieces: Pieces, shaped: shapes.Shape, *, with_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events. An error in the middle of it is an event too."""
        try:
            async with aclosing(pieces):
                async for index, piece in pieces:
                    yield _event(shaped.chunk(index, piece))
            if with_usage:
                yield _event(shaped.usage_chunk())
        except ZppError as fault:
            yield _event(error_body(fault.message, "server_error", None, 500))
        yield "data: [DONE]\n\n"

    def _check_length(self, content: Any) -> None:
        """Refuse token ids that are too many before each of them is checked."""
        prompt = content.get("prompt") if isinstance(content, dict) else None
        if isinstance(prompt, list):
            for token_ids in prompt if prompt and isinstance(prompt[0], list) else [prompt]:
                if isinstance(token_ids, list) and token_ids and isinstance(token_ids[0], int):
                    self._served.context.check_prompt(token_ids, "prompt", room=0)

    async def _fail(self, _request: Request, fault: Exception) -> Response:
        """Answer a fault of the pipeline: 500, or 503 where the pipeline is broken for good."""
        status = 500 if self._served.is_healthy() else 503
        return JSONResponse(error_body(str(fault), "server_error", None, status), status)


def _token_name(token_id: int) -> str:
    """What stands for a token in log probabilities where the request wants ids, as in vLLM."""
    return f"token_id:{token_id}"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
