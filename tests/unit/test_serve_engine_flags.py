# SPDX-License-Identifier: Apache-2.0
"""The engine's arguments that the gateway reads."""

from __future__ import annotations

import pytest

from zpptool.errors import ExitCode, ZppError
from zpptool.serve.engine_flags import REQUEST_IDS, allowed_origins, has_flag


def test_flags_are_found_however_they_are_spelled() -> None:
    assert has_flag(["--enforce-eager", "--enable_request_id_headers"], REQUEST_IDS)
    assert not has_flag(["--enforce-eager"], REQUEST_IDS)


@pytest.mark.parametrize(
    ("arguments", "origins"),
    [
        ([], ()),
        (["--allowed-origins", '["*"]'], ("*",)),
        (['--allowed_origins=["http://a", "http://b"]', "--seed", "1"], ("http://a", "http://b")),
    ],
)
def test_allowed_origins_are_read_as_vllm_reads_them(arguments: list[str], origins: tuple[str, ...]) -> None:
    assert allowed_origins(arguments) == origins


@pytest.mark.parametrize("arguments", [["--allowed-origins", "*"], ["--allowed-origins"], ["--allowed-origins=[1]"]])
def test_other_values_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ZppError, match="no JSON list of origins") as refused:
        allowed_origins(arguments)
    assert refused.value.exit_code is ExitCode.USAGE
