# SPDX-License-Identifier: Apache-2.0
"""The route of OpenAI's Responses API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.body import read_json
from zpptool.engines.transformers.api.disconnect import unless_disconnected
from zpptool.engines.transformers.api.generation import Generation, Pieces
from zpptool.engines.transformers.api.prompt_encoder import PromptEncoder
from zpptool.engines.transformers.api.request_base import parse
from zpptool.engines.transformers.api.response_request import ResponseRequest
from zpptool.engines.transformers.api.response_shape import Event, ResponseShape
from zpptool.engines.transformers.api.served import ServedModel
from zpptool.errors import ZppError


class Responses:
    """Routes of one served model.

    Args:
        served: the model.
        encoder: its tokenizer.
        generation: generates the answers.
    """

    def __init__(self, served: ServedModel, encoder: PromptEncoder, generation: Generation) -> None:
        self._served = served
        self._encoder = encoder
        self._generation = generation

    def routes(self) -> list[Route]:
        """The routes, for an ASGI application."""
        return [
            Route("/v1/responses", self.create, methods=["POST"]),
            Route("/v1/responses/{response_id}", self.retrieve),
            Route("/v1/responses/{response_id}/cancel", self.retrieve, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """Answer an input."""
        body = parse(ResponseRequest, await read_json(request))
        self._generation.check_model(body.model)
        return await unless_disconnected(request, self._create(body))

    async def retrieve(self, request: Request) -> Response:
        """No response is stored, so none is found."""
        raise BadRequest(f"Response with id '{request.path_params['response_id']}' not found.", "response_id", 404)

    async def _create(self, body: ResponseRequest) -> Response:
        prompt = (await self._encoder.chat(body.chat())).token_ids
        self._generation.check_prompts([prompt], "input", room=1)
        limit = body.max_output_tokens or self._served.defaults.max_new_tokens
        shape = ResponseShape(body, self._served.name, len(prompt), self._served.token_text)
        pieces = await self._generation.start(body, [prompt], limit)
        if body.stream:
            return StreamingResponse(_events(pieces, shape), media_type="text/event-stream")
        async with aclosing(pieces):
            async for _, piece in pieces:
                shape.answer.add(piece)
        return JSONResponse(shape.whole())


async def _events(pieces: Pieces, shape: ResponseShape) -> AsyncIterator[str]:
    """The response as server-sent events. An error in the middle of it is an event too."""
    try:
        async with aclosing(pieces):
            yield _lines(shape.opening())
            async for _, piece in pieces:
                yield _lines(shape.piece(piece))
        yield _lines(shape.closing())
    except ZppError as fault:
        yield _lines([shape.failure(fault.message)])


def _lines(events: Iterable[Event]) -> str:
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
