# SPDX-License-Identifier: Apache-2.0
"""Ask a running pipeline, and read its answer piece by piece, as the commands chat, complete and bench do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from zpptool.errors import ZppError, address_error, stage_error, usage_error
from zpptool.net.addresses import without_credentials

CONNECT_S = 5.0
LONGEST_ERROR = 500
"""Characters of a server's error that are shown."""


@dataclass(frozen=True)
class Piece:
    """A piece of an answer.

    Attributes:
        text: what is new.
        finish_reason: why the answer has ended; empty before its end.
    """

    text: str
    finish_reason: str = ""


class AnswerClient:
    """A client of a front or of a head's API.

    Args:
        url: of the server.
        key: its API key; None for none.
        timeout_s: the longest silence within an answer, in seconds.
    """

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        self._shown = without_credentials(url)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)
        except httpx.InvalidURL:  # its message may hold a part of a password
            raise address_error(f"{self._shown} is not a valid URL", "Name the pipeline with --url.") from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def model(self) -> str:
        """The name of the model that is served, the first one where there are several.

        Raises:
            ZppError: (ADDRESS) no server answers; (STAGE) it serves no model; or its refusal.
        """
        try:
            answer = self._http.get("/v1/models", timeout=CONNECT_S)
        except httpx.HTTPError as cause:
            raise self._unreachable(cause) from cause
        self._refuse_error(answer)
        try:
            return str(answer.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as cause:
            raise stage_error(f"{self._shown} names no model", "zpptool status says whether it is ready.") from cause

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Piece]:
        """Ask for an answer, and yield its pieces as they arrive.

        Args:
            path: `/v1/chat/completions` or `/v1/completions`.
            body: the request, without `stream`.

        Raises:
            ZppError: (ADDRESS) no server answers; (USAGE) it refuses the request; (STAGE) the answer breaks off.
        """
        try:
            with self._http.stream("POST", path, json={**body, "stream": True}) as answer:
                if answer.status_code != httpx.codes.OK:
                    answer.read()
                self._refuse_error(answer)
                yield from self._pieces(answer)
        except (httpx.ConnectError, httpx.ConnectTimeout) as cause:
            raise self._unreachable(cause) from cause
        except httpx.HTTPError as cause:
            raise stage_error(f"the answer of {self._shown} broke off: {cause or type(cause).__name__}") from cause

    def _pieces(self, answer: httpx.Response) -> Iterator[Piece]:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise stage_error(f"the answer of {self._shown} broke off: {_message(event)}")
            for choice in event.get("choices", ()):
                delta = choice.get("delta")
                text = choice.get("text", "") if delta is None else (delta.get("content") or "")
                yield Piece(text, choice.get("finish_reason") or "")

    def _refuse_error(self, answer: httpx.Response) -> None:
        if answer.status_code == httpx.codes.OK:
            return
        try:
            reason = _message(answer.json())
        except ValueError:
            reason = answer.text[:LONGEST_ERROR] or f"status {answer.status_code}"
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise ZppError(f"{self._shown} requires an API key", "Give it with --api-key, or as ZPP_API_KEY.")
        if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise stage_error(f"{self._shown} cannot answer: {reason}", "zpptool status names what is missing.")
        raise usage_error(f"{self._shown} refuses the request: {reason}")

    def _unreachable(self, cause: Exception) -> ZppError:
        return address_error(f"no pipeline answers at {self._shown}: {cause}", "Name it with --url.")


def _message(body: Any) -> str:
    """The message of OpenAI's error object, or of an older form of it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:LONGEST_ERROR]
