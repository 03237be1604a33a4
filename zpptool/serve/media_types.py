# SPDX-License-Identifier: Apache-2.0
"""The media type of a request's body: JSON, which a page of another site cannot send without a preflight."""

from __future__ import annotations

from zpptool.serve.hop_headers import Headers
from zpptool.serve.http_errors import Refusal, unsupported_media_type

MULTIPART = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations", "/v1/files"})
"""Paths that take a file as form data."""


def media_type_refusal(path: str, headers: Headers) -> Refusal | None:
    """Why a request's body is refused by its media type; None for a request without a body, or with an accepted one.

    Args:
        path: of the request.
        headers: of the request, with names in lower case.
    """
    fields = dict(headers)
    if b"transfer-encoding" not in fields and fields.get(b"content-length", b"0").strip() == b"0":
        return None
    given = fields.get(b"content-type", b"").decode("latin-1")
    media_type = given.partition(";")[0].strip().lower()
    if media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json")):
        return None
    if path in MULTIPART and media_type == "multipart/form-data":
        return None
    wanted = "multipart/form-data" if path in MULTIPART else "application/json"
    return unsupported_media_type(media_type, wanted)
