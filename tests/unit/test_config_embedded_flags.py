# SPDX-License-Identifier: Apache-2.0
"""The arguments of the embedded engine: the hosts that images are fetched from, and no others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from zpptool.config.embedded_flags import allowed_media_domains
from zpptool.errors import ExitCode, ZppError

FLAG = "--allowed-media-domains"


@pytest.mark.parametrize(
    ("words", "hosts"),
    [
        ((), ()),
        ((FLAG, "example.org"), ("example.org",)),
        ((FLAG, "Example.org", "b.org"), ("example.org", "b.org")),
        ((f"{FLAG}=a.org", FLAG, "b.org"), ("a.org", "b.org")),
    ],
)
def test_hosts_are_read_as_vllm_reads_them(words: Sequence[str], hosts: tuple[str, ...]) -> None:
    assert allowed_media_domains(words) == hosts


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((FLAG,), "needs the name of a host"),
        ((f"{FLAG}=",), "needs the name of a host"),
        (("--max-model-len", "5"), "takes no arguments of its own: --max-model-len 5"),
        ((FLAG, "a.org", "--other"), "takes no arguments of its own: --other"),
    ],
)
def test_anything_else_is_refused(words: Sequence[str], reason: str) -> None:
    with pytest.raises(ZppError, match=reason) as caught:
        allowed_media_domains(words)
    assert caught.value.exit_code == ExitCode.USAGE
