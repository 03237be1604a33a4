# SPDX-License-Identifier: Apache-2.0
"""Planned changes over HTTP: the gateway forwards a request to the heads of the pipelines that were started here, and
returns their answers, one JSON object a line.

The invariant: a gateway runs one change at a time, on one pipeline after the other, so that the other pipelines keep
answering requests. A request must have the content type `application/json`: a page of another site cannot send that
without a CORS permission, which the gateway never gives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from zpptool.admin import change_types
from zpptool.admin.own_socket import refuse_foreign_files, refuse_foreign_peer
from zpptool.errors import ExitCode, ZppError, address_error, stage_error
from zpptool.net.addresses import without_credentials
from zpptool.serve.api_keys import KEY_NAME

MAX_BODY_BYTES = change_types.MOST_BYTES
CONNECT_S = 10.0
"""How long connecting to a front and sending the request may take, in seconds; the change itself has no limit."""
NDJSON = "application/x-ndjson"
MAX_BY = 100
"""The most characters of a requester's own text before the name of its API key."""


class ReplicaAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A head's answer, and the name of its pipeline."""

    replica: str
    answer: change_types.Answer


class ChangeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of a request for a rollout.

    Attributes:
        replica: the pipeline to change; None for all that were started here, one after the other.
        by: who requests it, for logs.
    """

    replica: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    by: change_types.PlainText = ""

    def request(self, by: str) -> change_types.Request:
        """The request to each head, in the name of `by`."""
        return change_types.Rollout(by)


class RebalanceRequest(ChangeRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of a request to move layers between stages.

    Attributes:
        ranges, plan_digest: as in `change_types.Rebalance`.
    """

    ranges: tuple[change_types.PlainText, ...]
    plan_digest: change_types.PlainText = ""

    def request(self, by: str) -> change_types.Request:
        """The request to each head, in the name of `by`."""
        return change_types.Rebalance(by, self.ranges, self.plan_digest)


class PlannedChanges:
    """The gateway's routes for planned changes.

    Args:
        sockets: returns the sockets on which local heads accept changes, by pipeline name.
    """

    def __init__(self, sockets: Callable[[], Mapping[str, Path]]) -> None:
        self._sockets = sockets
        self._requested_by = ""  # of the change in progress; empty while there is none

    async def rollout(self, http_request: HttpRequest) -> Response:
        """Restart every stage, one after the other."""
        return await self._change(http_request, ChangeRequest)

    async def rebalance(self, http_request: HttpRequest) -> Response:
        """Move layers between stages."""
        return await self._change(http_request, RebalanceRequest)

    async def _change(self, http_request: HttpRequest, kind: type[ChangeRequest]) -> Response:
        if http_request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refusal(415, "a planned change is requested with a JSON body", "Send it as application/json.")
        try:
            change = msgspec.json.decode(await _body(http_request), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as cause:
            return _refusal(400, f"the request cannot be read: {cause}")
        sockets = self._sockets()
        names = [change.replica] if change.replica is not None else list(sockets)
        if not names or any(name not in sockets for name in names):
            missing = f"no pipeline called {change.replica}" if change.replica is not None else "no pipeline"
            here = f"Here are {', '.join(sockets)}." if sockets else "Ask the fronts or heads of those elsewhere."
            return _refusal(404, f"{missing} was started by this front", here)
        if self._requested_by:
            return _refusal(409, self._conflict(), "One at a time: ask again when it is over.")
        host = http_request.client.host if http_request.client else "an unknown host"
        by = change.by or f"POST {http_request.url.path} from {host}"
        if key_name := http_request.scope.get(KEY_NAME):
            by = f"{by[:MAX_BY]}, with the API key {key_name}"
        lines = self._lines({name: sockets[name] for name in names}, change.request(by))
        return StreamingResponse(
            lines, media_type=NDJSON, headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )

    async def _lines(self, sockets: Mapping[str, Path], request: change_types.Request) -> AsyncIterator[bytes]:
        """The answers of the heads, one head after the other, up to the first that fails; the outcome comes last."""
        if self._requested_by:  # another one has begun between the check in `_change` and here
            yield _line("", change_types.Outcome(self._conflict(), ExitCode.FAILURE))
            return
        self._requested_by = request.by
        try:
            outcome, last = change_types.Outcome("there is no pipeline"), ""
            for name, path in sockets.items():
                last = name
                async for answer in _ask_head(path, request):
                    if isinstance(answer, change_types.Outcome):
                        outcome = answer
                    else:
                        yield _line(name, answer)
                if outcome.exit_code:
                    break
            yield _line(last, outcome)
        finally:
            self._requested_by = ""

    def _conflict(self) -> str:
        return f"another planned change is under way: {self._requested_by}"


async def _ask_head(path: Path, request: change_types.Request) -> AsyncIterator[change_types.Answer]:
    """Send a head a request and yield its answers, as `change_types.ask` does; an error becomes an outcome."""
    try:
        refuse_foreign_files(path)
        reader, writer = await asyncio.open_unix_connection(str(path), limit=change_types.MOST_BYTES)
    except OSError as cause:
        yield change_types.outcome_of(change_types.no_head(path, cause))
        return
    except ZppError as fault:
        yield change_types.outcome_of(fault)
        return
    with closing(writer):
        try:
            refuse_foreign_peer(writer.get_extra_info("socket"), path)
            writer.write(change_types.encode_line(request))
            while True:
                answer = change_types.read_answer(await reader.readline())
                yield answer
                if isinstance(answer, change_types.Outcome):
                    return
        except (ZppError, OSError, ValueError) as fault:
            yield change_types.outcome_of(fault if isinstance(fault, ZppError) else stage_error(str(fault)))


async def _body(http_request: HttpRequest) -> bytes:
    """The request's body.

    Raises:
        ValueError: it has more than `MAX_BODY_BYTES`.
    """
    body = b""
    async for chunk in http_request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ValueError("it is too long")
    return body


def _line(name: str, answer: change_types.Answer) -> bytes:
    return msgspec.json.encode(ReplicaAnswer(name, answer)) + b"\n"


def _refusal(status: int, message: str, hint: str = "") -> Response:
    return JSONResponse({"error": {"message": message, "hint": hint, "type": "planned_change"}}, status)


def ask_front(url: str, key: str | None, request: change_types.Request) -> Iterator[tuple[str, change_types.Answer]]:
    """Request a planned change from a front and yield the answers as they arrive, each with the name of its pipeline;
    the outcome comes last.

    Args:
        url: of the front.
        key: the API key, or None.
        request: the change.

    Raises:
        ZppError: (ADDRESS) no front answers at that URL, or the connection broke; (STAGE) an answer cannot be read;
            (FAILURE) the front refuses the change.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(CONNECT_S, read=None)
    body = msgspec.to_builtins(request)
    path = f"{url.rstrip('/')}/pipeline/{body.pop('type')}"
    try:
        with (
            httpx.Client(trust_env=False, timeout=timeout) as client,
            client.stream("POST", path, headers=headers, json=body) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise _refusal_error(url, response.status_code, response.read())
            for line in response.iter_lines():
                yield _read_line(line)
    except httpx.InvalidURL:
        raise address_error(f"{without_credentials(url)} is not a valid URL", "Name the front with --url.") from None
    except httpx.HTTPError as cause:
        raise address_error(f"the front at {without_credentials(url)} does not answer any more: {cause}") from cause


def _read_line(line: str) -> tuple[str, change_types.Answer]:
    try:
        decoded = msgspec.json.decode(line, type=ReplicaAnswer)
    except msgspec.DecodeError as cause:
        raise stage_error(f"the front's answer cannot be read: {cause}") from cause
    return decoded.replica, decoded.answer


def _refusal_error(url: str, status: int, body: bytes) -> ZppError:
    """The error for a front's answer with that HTTP status."""
    url = without_credentials(url)
    if status == httpx.codes.UNAUTHORIZED:
        return ZppError(f"the front at {url} requires an API key", "Give it with --api-key, or as ZPP_API_KEY.")
    try:
        error: Any = msgspec.json.decode(body)["error"]
        return ZppError(str(error["message"]), str(error.get("hint") or "") or None)
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return ZppError(f"{url} answers a planned change with {status}", None, ExitCode.ADDRESS)
