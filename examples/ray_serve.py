# SPDX-License-Identifier: Apache-2.0
"""Ray Serve as the front of a pipeline: `PIPELINE=http://host:8000 serve run examples.ray_serve:app`.

The pipeline runs as it always does (run-stage, Kubernetes, Slurm); Ray Serve adds its own routing, scaling and
authentication in front of it. Answers are passed on as they arrive, so streams stay streams. It needs `ray[serve]` and
httpx.
"""

from __future__ import annotations

import os

import httpx
from fastapi import FastAPI, Request
from ray import serve
from starlette.responses import StreamingResponse

api = FastAPI()
NOT_FORWARDED = {"host", "content-length", "connection", "transfer-encoding"}


@serve.deployment(num_replicas=2, max_ongoing_requests=256)
@serve.ingress(api)
class Front:
    """Forwards every request below /v1 to the pipeline."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(base_url=os.environ["PIPELINE"], timeout=None, trust_env=False)

    @api.api_route("/v1/{path:path}", methods=["GET", "POST"])
    async def forward(self, request: Request) -> StreamingResponse:
        """Ask the pipeline, and pass its answer on."""
        headers = [(name, value) for name, value in request.headers.items() if name not in NOT_FORWARDED]
        body = await request.body()
        asked = self._client.build_request(request.method, request.url.path, headers=headers, content=body)
        answer = await self._client.send(asked, stream=True)
        kept = {name: value for name, value in answer.headers.items() if name not in NOT_FORWARDED}
        return StreamingResponse(answer.aiter_raw(), answer.status_code, kept)

    async def check_health(self) -> None:
        """Ray Serve takes this replica out while the pipeline does not answer."""
        (await self._client.get("/health", timeout=4)).raise_for_status()


app = Front.bind()
