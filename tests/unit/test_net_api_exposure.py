# SPDX-License-Identifier: Apache-2.0
"""An API that other machines can reach needs a key, or the user's consent."""

from __future__ import annotations

import pytest

from zpptool.errors import ExitCode, ZppError
from zpptool.net.api_exposure import open_api_warning, refuse_open_front

OPEN = ["0.0.0.0", "::", "10.0.0.1", "192.168.1.2", "node-b", "", "*", "fe80::1", "localhost.example.org"]
OWN = ["127.0.0.1", "127.0.0.2", "::1", "localhost", "LOCALHOST"]


@pytest.mark.parametrize("host", OPEN)
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(ZppError, match="needs API keys: other machines can reach it") as refused:
        refuse_open_front(host, has_keys=False, insecure=False)
    assert refused.value.exit_code is ExitCode.ADDRESS
    assert refused.value.hint is not None
    assert "--insecure" in refused.value.hint
    refuse_open_front(host, has_keys=True, insecure=False)
    refuse_open_front(host, has_keys=False, insecure=True)
    assert f"the API at {host} asks for no key" in (open_api_warning(host, has_keys=False) or "")
    assert open_api_warning(host, has_keys=True) is None


@pytest.mark.parametrize("host", OWN)
def test_loopback_needs_none(host: str) -> None:
    refuse_open_front(host, has_keys=False, insecure=False)
    assert open_api_warning(host, has_keys=False) is None
