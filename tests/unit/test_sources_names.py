# SPDX-License-Identifier: Apache-2.0
"""Names of models: paths, the Hub, URLs; and what requests call a model that is named so."""

from __future__ import annotations

from pathlib import Path

import pytest

from zpptool.errors import ExitCode, ZppError
from zpptool.sources.names import HubId, ModelName, UrlId, parse_remote, served_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "found", "served"),
    [
        ("org/name", HubId("org/name", None), "org/name"),
        ("org/name@v1.0", HubId("org/name", "v1.0"), "org/name"),
        (f"hf://org/name@{COMMIT}", HubId("org/name", COMMIT), "org/name"),
        ("hf:/org/name@refs/pr/1", HubId("org/name", "refs/pr/1"), "org/name"),
        ("https://host/a/model/", UrlId("https://host/a/model"), "https://host/a/model"),
        ("s3://bucket/model#0123", UrlId("s3://bucket/model", "0123"), "s3://bucket/model"),
        ("model", None, ""),
        ("./org/name", None, ""),
        ("/models/org/name", None, ""),
        ("", None, ""),
    ],
)
def test_names_are_parsed(text: str, found: object, served: str) -> None:
    assert parse_remote(text) == found
    assert served_name(text) == served


def test_a_path_takes_precedence_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_remote("org/name") is None
    assert parse_remote("hf://org/name") == HubId("org/name", None)


def test_a_revision_may_be_given_beside_the_name() -> None:
    assert ModelName("org/name", "v1").remote == HubId("org/name", "v1")
    assert ModelName("org/name@v1", "v1").remote == HubId("org/name", "v1")


@pytest.mark.parametrize(
    "model",
    [ModelName("/path", "v1"), ModelName("org/name@v1", "v2"), ModelName("ftp://host/a"), ModelName("hf://name")],
)
def test_what_cannot_be_meant_is_refused(model: ModelName) -> None:
    with pytest.raises(ZppError) as refused:
        _ = model.remote
    assert refused.value.exit_code is ExitCode.USAGE
