# SPDX-License-Identifier: Apache-2.0
"""Planned changes through a front: it hands a request on to the heads of the pipelines that were started here, and
their answers back, a line of JSON each.

The invariant: one change at a time goes through a front, and it goes from pipeline to pipeline, so that the others
take requests meanwhile. What asks has to say that it sends JSON: a page of another site cannot, unless it is let.
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

from zpptool.admin import change_types as ch
from zpptool.errors import ExitCode, ZppError, address_error, stage_error

MOST_BODY = ch.MOST_BYTES
ASK_S = 10.0
LINES = "application/x-ndjson"


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A head's answer, and which pipeline it is of."""

    replica: str
    answer: ch.Answer


class ChangeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of a request.

    Attributes:
        replica: the pipeline to change; all that were started here, one after the other, if None.
        by: who asks.
    """

    replica: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    by: ch.PlainText = ""

    def request(self, by: str) -> ch.Request:
        """What is asked of each pipeline."""
        return ch.Rollout(by)


class RebalanceRequest(ChangeRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of a request that layers move.

    Attributes:
        ranges, plan_digest: as in `changes.Rebalance`.
    """

    ranges: tuple[ch.PlainText, ...]
    plan_digest: ch.PlainText = ""

    def request(self, by: str) -> ch.Request:
        """As ever."""
        return ch.Rebalance(by, self.ranges, self.plan_digest)


class PlannedChanges:
    """The front's routes for planned changes.

    Args:
        sockets: where the heads that were started here take changes, by the names of their pipelines.
    """

    def __init__(self, sockets: Callable[[], Mapping[str, Path]]) -> None:
        self._sockets = sockets
        self._under_way = ""

    async def rollout(self, asked: HttpRequest) -> Response:
        """Every stage leaves and comes again, one after the other."""
        return await self._change(asked, ChangeRequest)

    async def rebalance(self, asked: HttpRequest) -> Response:
        """Layers move between stages."""
        return await self._change(asked, RebalanceRequest)

    async def _change(self, asked: HttpRequest, kind: type[ChangeRequest]) -> Response:
        if asked.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refusal(415, "a planned change is asked for with a body of JSON", "Send it as application/json.")
        try:
            wish = msgspec.json.decode(await _body(asked), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as cause:
            return _refusal(400, f"the request cannot be read: {cause}")
        sockets = self._sockets()
        names = [wish.replica] if wish.replica is not None else list(sockets)
        if not names or any(name not in sockets for name in names):
            told = f"no pipeline called {wish.replica}" if wish.replica is not None else "no pipeline"
            here = f"Here are {', '.join(sockets)}." if sockets else "Ask the fronts or heads of those elsewhere."
            return _refusal(404, f"{told} was started by this front", here)
        if self._under_way:
            told = f"another planned change is under way: {self._under_way}"
            return _refusal(409, told, "One at a time: ask again when it is over.")
        host = asked.client.host if asked.client else "somewhere"
        by = wish.by or f"POST {asked.url.path} from {host}"
        lines = self._lines({name: sockets[name] for name in names}, wish.request(by))
        return StreamingResponse(lines, media_type=LINES, headers={"cache-control": "no-store"})

    async def _lines(self, sockets: Mapping[str, Path], request: ch.Request) -> AsyncIterator[bytes]:
        """The answers of one head after the other, up to the first that does not do all; the last is the outcome."""
        if self._under_way:  # it has begun since this one was let in
            yield _line("", ch.Outcome(f"another planned change is under way: {self._under_way}", ExitCode.FAILURE))
            return
        self._under_way = request.by
        try:
            outcome, last = ch.Outcome("there is no pipeline"), ""
            for name, path in sockets.items():
                last = name
                async for answer in _ask(path, request):
                    if isinstance(answer, ch.Outcome):
                        outcome = answer
                    else:
                        yield _line(name, answer)
                if outcome.exit_code:
                    break
            yield _line(last, outcome)
        finally:
            self._under_way = ""


async def _ask(path: Path, request: ch.Request) -> AsyncIterator[ch.Answer]:
    """As `changes.ask`; a fault is an outcome."""
    try:
        lines, asking = await asyncio.open_unix_connection(str(path), limit=ch.MOST_BYTES)
    except OSError as cause:
        yield ch.outcome_of(ch.no_head(path, cause))
        return
    with closing(asking):
        try:
            asking.write(ch.encode_line(request))
            while True:
                answer = ch.read_answer(await lines.readline())
                yield answer
                if isinstance(answer, ch.Outcome):
                    return
        except (ZppError, OSError, ValueError) as fault:
            yield ch.outcome_of(fault if isinstance(fault, ZppError) else stage_error(str(fault)))


async def _body(asked: HttpRequest) -> bytes:
    """The body, as long as it is no longer than any; raises ValueError when it is."""
    body = b""
    async for piece in asked.stream():
        body += piece
        if len(body) > MOST_BODY:
            raise ValueError("it is too long")
    return body


def _line(name: str, answer: ch.Answer) -> bytes:
    return msgspec.json.encode(Told(name, answer)) + b"\n"


def _refusal(status: int, message: str, hint: str = "") -> Response:
    return JSONResponse({"error": {"message": message, "hint": hint, "type": "planned_change"}}, status)


def ask_front(url: str, key: str | None, request: ch.Request) -> Iterator[tuple[str, ch.Answer]]:
    """Ask a front; the answers as they come, each with the pipeline it is of, the outcome last.

    Args:
        url: of the front.
        key: of the API, where it wants one.
        request: the change.

    Raises:
        ZppError: (ADDRESS) nobody answers there; (STAGE) it has gone before the outcome; (FAILURE) it refuses.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(ASK_S, read=None)
    body = msgspec.to_builtins(request)
    path = f"{url.rstrip('/')}/pipeline/{body.pop('type')}"
    try:
        with (
            httpx.Client(trust_env=False, timeout=timeout) as client,
            client.stream("POST", path, headers=headers, json=body) as told,
        ):
            if told.status_code != httpx.codes.OK:
                raise _refused(url, told.status_code, told.read())
            for line in told.iter_lines():
                yield from _told(line)
    except (httpx.HTTPError, httpx.InvalidURL) as cause:
        raise address_error(f"the front at {url} does not answer any more: {cause}") from cause


def _told(line: str) -> Iterator[tuple[str, ch.Answer]]:
    try:
        told = msgspec.json.decode(line, type=Told)
    except msgspec.DecodeError as cause:
        raise stage_error(f"what the front answers cannot be read: {cause}") from cause
    yield told.replica, told.answer


def _refused(url: str, status: int, body: bytes) -> ZppError:
    """Why a front has refused."""
    if status == httpx.codes.UNAUTHORIZED:
        return ZppError(f"the front at {url} wants an API key", "Give it with --api-key, or as ZPP_API_KEY.")
    said: Any = None
    try:
        said = msgspec.json.decode(body)
        error = said["error"]
        return ZppError(str(error["message"]), str(error.get("hint") or "") or None)
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return ZppError(f"{url} answers a planned change with {status}", None, ExitCode.ADDRESS)
