# SPDX-License-Identifier: Apache-2.0
"""The routes of the engines' own servers that the gateway forwards; it answers every other path with 404.

The list holds the OpenAI API and the other routes of vLLM's server that answer one request. What changes the engine is
listed separately, since it is administration (see `serve.admin_guard`). What would break a pipeline when it is used on
one engine (sleeping, scaling, weight updates, calls of arbitrary methods) is on neither list.
"""

from __future__ import annotations

from starlette.routing import Route
from starlette.types import ASGIApp

READ = (
    "/v1/models", "/v1/responses/{response_id}", "/version", "/ping", "/load", "/tokenizer_info", "/openapi.json",
)  # fmt: skip
"""Paths of GET and HEAD."""
COMPUTE = (
    "/v1/completions", "/v1/completions/render", "/v1/completions/derender",
    "/v1/chat/completions", "/v1/chat/completions/batch", "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/responses", "/v1/responses/render", "/v1/responses/{response_id}/cancel",
    "/v1/messages", "/v1/messages/count_tokens", "/v1/messages/render",
    "/v1/embeddings", "/v2/embed", "/v1/score", "/score", "/v1/rerank", "/v2/rerank", "/rerank", "/classify",
    "/pooling", "/generative_scoring",
    "/v1/audio/transcriptions", "/v1/audio/translations",
    "/tokenize", "/detokenize", "/invocations", "/inference/v1/generate", "/v1/systemone", "/cohere/v2/chat",
    "/ping",
)  # fmt: skip
"""Paths of POST that compute an answer, or cancel one."""
ADMINISTER = (
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/start_profile", "/stop_profile", "/reset_prefix_cache",
    "/reset_mm_cache", "/reset_encoder_cache",
)  # fmt: skip
"""Paths of POST that change the engine."""


def engine_routes(proxy: ASGIApp) -> list[Route]:
    """A route for each path, with all the methods that it accepts.

    Args:
        proxy: the application that forwards a request.
    """
    methods: dict[str, list[str]] = {}
    for path in READ:
        methods.setdefault(path, []).extend(("GET", "HEAD"))
    for path in (*COMPUTE, *ADMINISTER):
        methods.setdefault(path, []).append("POST")
    return [Route(path, proxy, methods=accepted) for path, accepted in methods.items()]
