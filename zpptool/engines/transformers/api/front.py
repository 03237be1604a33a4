# SPDX-License-Identifier: Apache-2.0
"""The HTTP API of the embedded engine: the part of the OpenAI API that comparisons and first trials need.

The pipeline and the unsplit model are served by the same code. Answers have OpenAI's format, and vLLM's names for what
OpenAI does not have (`/tokenize`, `return_token_ids`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from jinja2 import TemplateError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from zpptool.engines.transformers.api import shapes
from zpptool.engines.transformers.api.answer import Answer, answer_all, answer_one
from zpptool.engines.transformers.api.counts import Counts
from zpptool.engines.transformers.api.requests import (
    BadRequest,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Message,
    TokenizeRequest,
    parse,
)
from zpptool.engines.transformers.api.served import ServedModel
from zpptool.errors import ZppError

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat may continue up to the model's limit."""


class Front:
    """The routes of one served model."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._counts = Counts()

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/metrics", self.metrics),
                Route("/v1/models", self.models),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ],
            exception_handlers={BadRequest: _refuse, ZppError: self._fail},
        )

    async def health(self, _request: Request) -> Response:
        """200 while the model can answer, else 503."""
        return Response(status_code=200 if self._served.is_healthy() else 503)

    async def metrics(self, _request: Request) -> Response:
        """Prometheus text."""
        return Response(self._counts.prometheus(), media_type="text/plain; version=0.0.4")

    async def models(self, _request: Request) -> Response:
        """The one model."""
        card = {"id": self._served.name, "object": "model", "created": 0, "owned_by": "zpptool"}
        return JSONResponse({"object": "list", "data": [{**card, "max_model_len": self._served.max_model_len}]})

    async def tokenize(self, request: Request) -> Response:
        """The token ids of a prompt or of a chat."""
        body = parse(TokenizeRequest, await _json(request))
        if (body.prompt is None) == (body.messages is None):
            raise BadRequest("prompt: give either a prompt or messages", "prompt")
        if body.messages is not None:
            token_ids = self._chat_ids(body.messages, body.add_generation_prompt)
        else:
            assert body.prompt is not None
            token_ids = self._served.encode(body.prompt, add_special_tokens=body.add_special_tokens)
        return JSONResponse({"tokens": token_ids, "count": len(token_ids), "max_model_len": self._served.max_model_len})

    async def completions(self, request: Request) -> Response:
        """Complete one prompt or several."""
        body = parse(CompletionRequest, await _json(request))
        prompts = [
            self._served.encode(prompt, add_special_tokens=body.add_special_tokens)
            if isinstance(prompt, str)
            else prompt
            for prompt in body.prompts()
        ]
        max_tokens = body.max_tokens or DEFAULT_COMPLETION_TOKENS
        return await self._answer(request, body, shapes.Completion, prompts, max_tokens)

    async def chat(self, request: Request) -> Response:
        """Answer a chat."""
        body = parse(ChatRequest, await _json(request))
        prompt = self._chat_ids(body.messages, body.add_generation_prompt)
        limit = body.max_completion_tokens or body.max_tokens
        available = max(self._served.max_model_len - len(prompt), 1)
        return await self._answer(request, body, shapes.Chat, [prompt], limit or available)

    async def _answer(
        self,
        request: Request,
        body: GenerationRequest,
        shape: type[shapes.Shape],
        prompts: list[list[int]],
        max_tokens: int,
    ) -> Response:
        if body.model not in (None, self._served.name):
            raise BadRequest(f"model: there is no {body.model} here, only {self._served.name}", "model", 404)
        for prompt in prompts:
            self._check(prompt, max_tokens)
        shaped = shape(self._served.name, prompts, body.return_token_ids)
        self._counts.requests += 1
        self._counts.prompt_tokens += sum(map(len, prompts))
        pieces = answer_all([answer_one(self._served, prompt, max_tokens, body) for prompt in prompts])
        if body.stream:
            events = self._events(pieces, shaped, with_usage=body.stream_options.include_usage)
            return StreamingResponse(events, media_type="text/event-stream")
        async with aclosing(pieces):
            async for index, piece in pieces:
                self._counts.generation_tokens += len(piece.token_ids)
                shaped.answers[index].add(piece)
                if await request.is_disconnected():
                    break
        return JSONResponse(shaped.whole())

    async def _events(
        self, pieces: AsyncGenerator[tuple[int, Answer], None], shaped: shapes.Shape, *, with_usage: bool
    ) -> AsyncIterator[str]:
        """The answer as server-sent events. An error in the middle of it is an event too."""
        try:
            async with aclosing(pieces):
                async for index, piece in pieces:
                    self._counts.generation_tokens += len(piece.token_ids)
                    yield _event(shaped.chunk(index, piece))
            if with_usage:
                yield _event(shaped.usage_chunk())
        except ZppError as fault:
            yield _event(_error(fault.message, "server_error", None, 500))
        yield "data: [DONE]\n\n"

    def _chat_ids(self, messages: list[Message], add_generation_prompt: bool) -> list[int]:
        tokenizer = self._served.tokenizer
        if tokenizer.chat_template is None:
            raise BadRequest("messages: this model has no chat template", "messages")
        try:
            token_ids: list[int] = tokenizer.apply_chat_template(
                [message.for_template() for message in messages],
                add_generation_prompt=add_generation_prompt,
                tokenize=True,
                return_dict=False,
            )
        except TemplateError as cause:
            raise BadRequest(f"messages: the chat template refuses them: {cause}", "messages") from cause
        return token_ids

    def _check(self, prompt: list[int], max_tokens: int) -> None:
        """Refuse a prompt that is too long or not the model's."""
        limit = self._served.max_model_len
        if not prompt:
            raise BadRequest("prompt: it has no tokens", "prompt")
        if max(prompt) >= self._served.vocab_size:
            raise BadRequest(f"prompt: {max(prompt)} is not a token of this model", "prompt")
        if len(prompt) >= limit:
            raise BadRequest(
                f"prompt: {len(prompt)} tokens leave no room for an answer; {limit} is the limit", "prompt"
            )
        if len(prompt) + max_tokens > limit:
            raise BadRequest(
                f"max_tokens: {len(prompt)} tokens of prompt and {max_tokens} more are too many; {limit} is the limit",
                "max_tokens",
            )

    async def _fail(self, _request: Request, fault: Exception) -> Response:
        """Answer a fault of the pipeline: 500, or 503 where the pipeline is broken for good."""
        status = 500 if self._served.is_healthy() else 503
        return JSONResponse(_error(str(fault), "server_error", None, status), status)


def _error(message: str, kind: str, param: str | None, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def _refuse(_request: Request, refused: Exception) -> Response:
    assert isinstance(refused, BadRequest)
    kind = "not_found_error" if refused.status == 404 else "invalid_request_error"
    return JSONResponse(_error(refused.message, kind, refused.param, refused.status), refused.status)


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except ValueError as cause:
        raise BadRequest(f"the body is not JSON: {cause}") from cause


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
