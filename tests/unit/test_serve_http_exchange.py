# SPDX-License-Identifier: Apache-2.0
"""Which requests may be repeated, and which responses are errors."""

from __future__ import annotations

import pytest

from zpptool.serve.http_exchange import ProxiedRequest, is_error_event


@pytest.mark.parametrize(
    ("method", "target", "repeatable"),
    [
        ("POST", b"/v1/completions", True),
        ("POST", b"/v1/chat/completions?x=/y", True),
        ("POST", b"/tokenize", True),
        ("GET", b"/v1/models", True),
        ("POST", b"/v1/load_lora_adapter", False),
        ("DELETE", b"/v1/responses/7", False),
        ("POST", b"/v1/responses/7/cancel", False),
    ],
)
def test_requests_that_change_nothing_are_repeatable(method: str, target: bytes, repeatable: bool) -> None:
    assert ProxiedRequest(method, target, [], b"").is_repeatable is repeatable


@pytest.mark.parametrize(
    ("content_type", "chunk", "is_error"),
    [
        (b"text/event-stream; charset=utf-8", b'data: {"error": {"message": "x"}}\n\n', True),
        (b"text/event-stream", b'data: {"choices": [], "error": null}\n\n', False),
        (b"text/event-stream", b"data: [DONE]\n\n", False),
        (b"text/event-stream", b"data: {cut", False),
        (b"text/event-stream", b"", False),
        (b"application/json", b'data: {"error": 1}\n\n', False),
    ],
)
def test_a_stream_that_begins_with_an_error(content_type: bytes, chunk: bytes, is_error: bool) -> None:
    assert is_error_event(content_type, chunk) is is_error
