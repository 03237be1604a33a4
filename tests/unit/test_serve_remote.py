# SPDX-License-Identifier: Apache-2.0
"""The addresses of `--upstream`."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from zpptool.errors import ExitCode, ZppError
from zpptool.serve.remote import checked_address


@pytest.mark.parametrize("text", ["10.0.0.1:8000", "ftp://a", "http://", "http://a/v1", "http://a?x=1"])
def test_a_text_that_is_no_server_address_is_refused(text: str) -> None:
    with pytest.raises(ZppError) as refused:
        checked_address(text)
    assert refused.value.exit_code == ExitCode.USAGE


def test_a_trailing_slash_is_removed() -> None:
    assert checked_address("https://a:8000/") == "https://a:8000"
