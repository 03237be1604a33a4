# SPDX-License-Identifier: Apache-2.0
"""`GET /v1/models/{id}`, which OpenAI's clients call and the engines' servers lack: one entry of their list."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zpptool.serve.bounded_fetch import FetchError, fetch
from zpptool.serve.http_errors import Refusal, model_not_found, pipeline_lost
from zpptool.serve.pool import Pool

TIMEOUT_S = 10.0


class ModelList(msgspec.Struct, frozen=True):
    """The response to `GET /v1/models`."""

    data: list[dict[str, Any]]


class ModelLookup:
    """The route.

    Args:
        pool: the pipelines.
        client: for requests to them.
        keep_key: whether the client's `Authorization` header is forwarded to the upstreams.
    """

    def __init__(self, pool: Pool, client: httpx.AsyncClient, *, keep_key: bool) -> None:
        self._pool, self._client, self._keep_key = pool, client, keep_key

    async def model(self, request: Request) -> Response:
        """The entry of one model in a pipeline's list; OpenAI's error object with 404 where there is none."""
        wanted = request.path_params["model_id"]
        try:
            listed = await self._models(request)
        except Refusal as refusal:
            return refusal.response()
        found = [each for each in listed if each.get("id") == wanted]
        return JSONResponse(found[0]) if found else model_not_found(wanted).response()

    async def _models(self, request: Request) -> list[dict[str, Any]]:
        """The list of a pipeline that is ready.

        Raises:
            Refusal: (503) no pipeline is ready; (502) its list cannot be read.
        """
        upstream = await self._pool.take(Counter(), time.monotonic() + self._pool.deadline_s)
        authorization = request.headers.get("authorization") if self._keep_key else None
        headers = {"authorization": authorization} if authorization else {}
        try:
            with self._pool.answering(upstream):
                answer = await fetch(self._client, f"{upstream.state.url}/v1/models", TIMEOUT_S, headers)
            return msgspec.json.decode(answer.body, type=ModelList).data
        except (FetchError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
            raise pipeline_lost(f"{upstream.name}: its list of models cannot be read ({cause})") from cause
