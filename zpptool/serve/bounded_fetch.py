# SPDX-License-Identifier: Apache-2.0
"""Small responses of the servers behind the gateway (health, metrics, status, models), read within bounds.

Compression is neither requested nor accepted: a response of one megabyte could otherwise decompress to a gigabyte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

MAX_RESPONSE_BYTES = 16 << 20
IDENTITY = "identity"


class FetchError(Exception):
    """No response was read: the server cannot be reached, is too slow, or its response is too large or compressed."""


@dataclass(frozen=True)
class FetchedResponse:
    """A complete response.

    Attributes:
        status: the HTTP status.
        body: all of it.
    """

    status: int
    body: bytes

    @property
    def is_ok(self) -> bool:
        """Whether the status is 200."""
        return self.status == httpx.codes.OK

    @property
    def text(self) -> str:
        """The body as UTF-8; bytes that are not are replaced."""
        return self.body.decode(errors="replace")


async def fetch(
    client: httpx.AsyncClient, url: str, timeout_s: float, headers: Mapping[str, str] | None = None
) -> FetchedResponse:
    """GET one URL.

    Args:
        client: sends the request.
        url: what to read.
        timeout_s: seconds for the whole response.
        headers: further headers of the request.

    Raises:
        FetchError: no response was read.
    """
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("GET", url, headers={**(headers or {}), "accept-encoding": IDENTITY}) as response,
        ):
            if response.headers.get("content-encoding", IDENTITY).lower() != IDENTITY:
                raise FetchError("its response is compressed, which was not requested")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_RESPONSE_BYTES:
                    raise FetchError(f"its response is larger than {MAX_RESPONSE_BYTES} bytes")
            return FetchedResponse(response.status_code, bytes(body))
    except TimeoutError as cause:
        raise FetchError(f"no response in {timeout_s:g} s") from cause
    except (httpx.TransportError, httpx.StreamError) as cause:
        raise FetchError(str(cause) or type(cause).__name__) from cause
