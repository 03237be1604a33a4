# SPDX-License-Identifier: Apache-2.0
"""The images of a request: fetched within limits, and decoded within limits."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx
from PIL import Image, ImageOps, UnidentifiedImageError

from zpptool.config.embedded_flags import MEDIA_DOMAINS
from zpptool.engines.transformers.api.bad_request import BadRequest

MAX_IMAGES = 64
"""The most images of one request."""
MAX_PIXELS = 1 << 26
"""The most pixels of all images of one request together."""
MAX_IMAGE_BYTES = 32 << 20
"""The most bytes of an image that is fetched."""
FETCH_S = 20.0
"""The time limit for fetching one image, in seconds."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class ImageSource:
    """Fetches what the `image_url` parts of requests name.

    Args:
        domains: the hosts from which images are fetched by http and https, in lower case.
    """

    def __init__(self, domains: Sequence[str] = ()) -> None:
        self._domains = frozenset(domains)

    async def contents(self, urls: Sequence[str]) -> list[bytes]:
        """The bytes behind the URLs of a request.

        Raises:
            BadRequest: there are too many, or one may not or cannot be fetched.
        """
        if len(urls) > MAX_IMAGES:
            raise BadRequest(f"messages: {len(urls)} images; a request may have at most {MAX_IMAGES}", "messages")
        return [await self._content(number, url) for number, url in enumerate(urls, start=1)]

    async def _content(self, number: int, url: str) -> bytes:
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").lower()
        except ValueError as cause:
            raise _refusal(number, f"the URL cannot be read: {cause}") from cause
        if parts.scheme == "data":
            return _data_content(number, parts.path)
        if parts.scheme not in ("http", "https"):
            raise _refusal(number, "only data: URLs, and URLs of http and https, are taken")
        if host not in self._domains:
            raise _refusal(
                number,
                f"images are not fetched from {host or 'nowhere'}; {MEDIA_DOMAINS} of the server names the hosts",
            )
        return await _fetched(number, url)


def decode_images(contents: Sequence[bytes]) -> list[Image.Image]:
    """The images as RGB, turned as their EXIF data says.

    Raises:
        BadRequest: one is no image of a known format, is broken, or all together have too many pixels.
    """
    pixels = 0
    images = []
    for number, content in enumerate(contents, start=1):
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                pixels += opened.width * opened.height
                if pixels > MAX_PIXELS:
                    raise _refusal(
                        number,
                        f"with {opened.width} x {opened.height} pixels, the request has more than the {MAX_PIXELS}"
                        " pixels that are allowed",
                    )
                images.append(ImageOps.exif_transpose(opened).convert("RGB"))
        except UnidentifiedImageError as cause:
            raise _refusal(number, f"it is none of the formats {', '.join(FORMATS)}") from cause
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as cause:
            raise _refusal(number, f"it is broken: {cause}") from cause
    return images


def _data_content(number: int, path: str) -> bytes:
    kind, _, content = path.partition(",")
    if not kind.endswith(";base64"):
        raise _refusal(number, "the data: URL is not in base64")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as cause:
        raise _refusal(number, f"the data: URL is not in base64: {cause}") from cause


async def _fetched(number: int, url: str) -> bytes:
    """What a server answers. Redirects are not followed: they could lead to a host that is not allowed."""
    content = bytearray()
    try:
        async with httpx.AsyncClient(timeout=FETCH_S) as client, client.stream("GET", url) as answer:
            if answer.status_code != httpx.codes.OK:
                raise _refusal(number, f"the server of its URL answers {answer.status_code}")
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > MAX_IMAGE_BYTES:
                    raise _refusal(number, f"it has more than {MAX_IMAGE_BYTES} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as cause:
        raise _refusal(number, f"it cannot be fetched: {cause or type(cause).__name__}") from cause
    return bytes(content)


def _refusal(number: int, why: str) -> BadRequest:
    return BadRequest(f"messages: image {number}: {why}", "messages")
