# SPDX-License-Identifier: Apache-2.0
"""The server that computes a batch's lines: one request at a time is answered, through restarts and recoveries.

What is known about a failure decides: the server's own refusal of a request is its answer; a server that is not there,
or says that it cannot answer now, is waited for; and a request during which the server failed several times may be the
cause (`SuspectLine`), which is found out while nothing else is in flight.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from zpptool.batch.flow import EngineLoad, load_in
from zpptool.batch.result_line import Answer
from zpptool.errors import ZppError, stage_error, usage_error
from zpptool.net.addresses import without_credentials
from zpptool.supervisor.backoff import Backoff

CONNECT_S = 10.0
PROBE_S = 60.0
METRICS_S = 5.0
STRIKES = 3
"""So many failures of the server during one request make that request a suspect."""
BACKOFF = Backoff(max_failures=1 << 30, first_s=0.1, longest_s=5.0, immediate=1)
_UNAVAILABLE = (408, 425, 429, 503)
_REFUSED_ACCESS = (401, 403)
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10), (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]  # fmt: skip
"""A connection to a host that has vanished ends after a minute."""


class SuspectLine(Exception):
    """The server has failed several times during one request.

    Attributes:
        answer: the last one; None where there was none.
        reason: the last failure, in words.
    """

    def __init__(self, answer: Answer | None, reason: str) -> None:
        super().__init__(reason)
        self.answer, self.reason = answer, reason


@dataclass
class Outage:
    """Since when no request has been answered.

    Attributes:
        limit_s: how long that may last, in seconds.
        since: on the monotonic clock; None while requests are answered.
    """

    limit_s: float
    since: float | None = field(default=None)

    def over(self) -> None:
        """A request was answered."""
        self.since = None

    def failed(self, url: str, reason: str) -> None:
        """A request was not answered.

        Raises:
            ZppError: (STAGE) none has been for too long.
        """
        now = time.monotonic()
        if self.since is None:
            self.since = now
        if now - self.since > self.limit_s:
            raise stage_error(
                f"{url} has answered no request for {self.limit_s:g} s: {reason}",
                "When it answers again, run the same command: it continues.",
            )


def server_url(text: str) -> str:
    """The base URL of a server, without the `/v1` that OpenAI's clients have in it.

    Raises:
        ZppError: (USAGE) it is no URL of HTTP.
    """
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or parts.query or parts.fragment:
        raise usage_error(f"--url {without_credentials(text)} is no URL of a server", "For example http://host:8000.")
    return text.rstrip("/").removesuffix("/v1")


def open_client(url: str, api_key: str | None, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client for a batch: as many connections as requests, and no limit of time for an answer.

    Args:
        url: the server's base URL.
        api_key: for the server; None for none.
        transport: carries the requests; None for the network.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
    return httpx.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        transport=transport or httpx.AsyncHTTPTransport(limits=limits, socket_options=_KEEPALIVE),
        trust_env=False,
    )


class BatchServer:
    """A server of the OpenAI API.

    Args:
        client: for requests to it.
        retry_for_s: how long it may answer no request before the run ends, in seconds.
    """

    def __init__(self, client: httpx.AsyncClient, retry_for_s: float) -> None:
        self._client = client
        self._outage, self._silence = Outage(retry_for_s), Outage(retry_for_s)
        self.url = without_credentials(str(client.base_url))

    async def answer(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to one request, an error included that is the request's own.

        Raises:
            SuspectLine: the server has failed several times during it.
            ZppError: (STAGE) the server answers no request any more; (FAILURE) it accepts none from this client.
        """
        content = msgspec.json.encode(body)
        failures = strikes = 0
        while True:
            answer: Answer | None = None
            was_sent = True
            try:
                response = await self._client.post(path, content=content, headers={"content-type": "application/json"})
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as cause:
                was_sent, reason = False, f"{type(cause).__name__}: {cause}"
            except httpx.TransportError as cause:
                reason = f"{type(cause).__name__}: {cause}"
            else:
                answer = _answer_in(response)
                reason = f"{response.status_code} {_message(answer.body)}"
                if answer.status in _REFUSED_ACCESS:
                    raise ZppError(
                        f"{self.url} refuses access: {reason}", "Give its key with --api-key or ZPP_API_KEY."
                    )
                if answer.status < 500 and answer.status not in _UNAVAILABLE:
                    self._outage.over()
                    return answer
                was_sent = answer.status not in _UNAVAILABLE
            failures += 1
            strikes += was_sent
            if strikes >= STRIKES:
                raise SuspectLine(answer, reason)
            self._outage.failed(self.url, reason)
            await asyncio.sleep(BACKOFF.delay_s(failures))

    async def load(self) -> EngineLoad | None:
        """What the engine reports about its load; None where it reports none, or does not answer.

        Raises:
            ZppError: (STAGE) the server has not answered this for too long. A server that hangs keeps its connections,
                and nothing else shows that no answer will come.
        """
        try:
            response = await self._client.get("/metrics", timeout=METRICS_S)
        except httpx.TransportError as cause:
            self._silence.failed(self.url, f"{type(cause).__name__}: {cause}")
            return None
        self._silence.over()
        return load_in(response.text) if response.status_code == httpx.codes.OK else None

    async def models(self) -> list[dict[str, Any]]:
        """The cards of `/v1/models`, once the server answers.

        Raises:
            ZppError: (STAGE) it does not answer in time; (FAILURE) it answers with something else.
        """
        failures = 0
        while True:
            try:
                response = await self._client.get("/v1/models", timeout=PROBE_S)
            except httpx.TransportError as cause:
                reason = f"{type(cause).__name__}: {cause}"
            else:
                answer = _answer_in(response)
                if answer.is_success and isinstance(answer.body, dict) and answer.body.get("data"):
                    self._outage.over()
                    return [card for card in answer.body["data"] if isinstance(card, dict)]
                reason = f"{response.status_code} {_message(answer.body)}"
                if answer.status not in (*_UNAVAILABLE, 502, 504):
                    raise ZppError(f"{self.url} does not list its models: {reason}", "Check --url and --api-key.")
            failures += 1
            self._outage.failed(self.url, reason)
            await asyncio.sleep(BACKOFF.delay_s(failures))

    async def has_priorities(self, model: str) -> bool:
        """Whether the engine schedules requests by their priority: one token is computed to find out."""
        body = {"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0, "priority": 1}
        try:
            response = await self._client.post("/v1/completions", json=body, timeout=PROBE_S)
        except httpx.TransportError:
            return False
        return response.status_code == httpx.codes.OK


def _answer_in(response: httpx.Response) -> Answer:
    """The answer in a response; a success that is not JSON counts as a failure of the server."""
    try:
        return Answer(response.status_code, msgspec.json.decode(response.content))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        error = {"error": {"message": response.text[:1000], "type": "server_error", "param": None, "code": None}}
        return Answer(502 if response.status_code < 300 else response.status_code, error)


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", ""))[:300] if isinstance(error, dict) else ""
