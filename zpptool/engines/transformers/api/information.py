# SPDX-License-Identifier: Apache-2.0
"""The routes that generate nothing: health, numbers, the model's card, and the tokenizer."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from zpptool import __version__
from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.body import read_json
from zpptool.engines.transformers.api.counts import Counts
from zpptool.engines.transformers.api.prompt_encoder import PromptEncoder
from zpptool.engines.transformers.api.request_base import parse
from zpptool.engines.transformers.api.requests import DetokenizeRequest, TokenizeChatRequest, TokenizeRequest
from zpptool.engines.transformers.api.served import ServedModel


class Information:
    """Routes about one served model.

    Args:
        served: the model.
        encoder: its tokenizer.
        counts: of the routes that generate.
    """

    def __init__(self, served: ServedModel, encoder: PromptEncoder, counts: Counts) -> None:
        self._served = served
        self._encoder = encoder
        self._counts = counts
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        """The routes, for an ASGI application."""
        return [
            Route("/health", self.health),
            Route("/ping", self.health, methods=["GET", "POST"]),
            Route("/metrics", self.metrics),
            Route("/load", self.load),
            Route("/version", self.version),
            Route("/v1/models", self.models),
            Route("/tokenizer_info", self.tokenizer_info),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
        ]

    async def health(self, _request: Request) -> Response:
        """200 while the model can answer, else 503."""
        return Response(status_code=200 if self._served.is_healthy() else 503)

    async def metrics(self, _request: Request) -> Response:
        """Prometheus text."""
        return Response(self._counts.prometheus(), media_type="text/plain; version=0.0.4")

    async def load(self, _request: Request) -> Response:
        """The number of requests that are being answered."""
        return JSONResponse({"server_load": self._counts.in_progress})

    async def version(self, _request: Request) -> Response:
        """The version of zpptool."""
        return JSONResponse({"version": __version__})

    async def models(self, _request: Request) -> Response:
        """The one model."""
        card = {
            "id": self._served.name,
            "object": "model",
            "created": self._created,
            "owned_by": "zpptool",
            "root": self._served.root,
            "parent": None,
            "max_model_len": self._served.context.tokens,
            "permission": [],
        }
        return JSONResponse({"object": "list", "data": [card]})

    async def tokenizer_info(self, _request: Request) -> Response:
        """The settings of the tokenizer's tokenizer_config.json, as far as JSON can express them, and its class."""
        tokenizer = self._served.detokenizer
        settings = {name: _plain(value) for name, value in tokenizer.init_kwargs.items()}
        return JSONResponse(
            {**settings, "tokenizer_class": type(tokenizer).__name__, "chat_template": tokenizer.chat_template}
        )

    async def tokenize(self, request: Request) -> Response:
        """The token ids of a prompt or of a chat."""
        content = await read_json(request)
        if isinstance(content, dict) and content.get("messages") is not None:
            chat = parse(TokenizeChatRequest, content)
            token_ids, with_strs = (await self._encoder.chat(chat)).token_ids, chat.return_token_strs
        else:
            body = parse(TokenizeRequest, content)
            token_ids = await self._encoder.text(body.prompt, add_special_tokens=body.add_special_tokens)
            with_strs = body.return_token_strs
        token_strs = await self._encoder.token_strs(token_ids) if with_strs else None
        return JSONResponse(
            {
                "tokens": token_ids,
                "count": len(token_ids),
                "max_model_len": self._served.context.tokens,
                "token_strs": token_strs,
            }
        )

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids, with special tokens."""
        body = parse(DetokenizeRequest, await read_json(request))
        if body.tokens and max(body.tokens) >= self._served.vocab_size:
            raise BadRequest(f"tokens: {max(body.tokens)} is not a token of this model", "tokens")
        return JSONResponse({"prompt": await self._encoder.decode(body.tokens)})


def _plain(value: Any) -> Any:
    """What JSON can express of a setting; other objects as text, for example added tokens."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)
