# SPDX-License-Identifier: Apache-2.0
"""`zpptool keys` generates private files and shows public keys only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import typed_here

from zpptool.wire.security.key_files import read_key_file


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run = typed_here(monkeypatch, capsys)
    return lambda *words: run("keys", *words)


def test_a_pipelines_keys_are_made_and_shown_without_secrets(keys, tmp_path: Path) -> None:
    ran = keys("generate", "--num-stages", 2, "-o", tmp_path / "k", "--json")
    assert ran.code == 0
    made = json.loads(ran.out)
    assert (made["schema_version"], made["num_stages"]) == (1, 2)
    assert [Path(item["path"]).name for item in made["files"]] == ["stage_0.keys", "stage_1.keys"]
    secrets = [pair.secret for item in made["files"] for pair in read_key_file(Path(item["path"])).own]
    shown = keys("show", tmp_path / "k")
    as_json = keys("show", tmp_path / "k" / "stage_0.keys", "--json")
    assert (shown.code, as_json.code) == (0, 0)
    assert not [secret for secret in secrets if secret in ran.out + shown.out + as_json.out]
    shown = json.loads(as_json.out)["files"][0]
    assert shown["pipeline"] == made["pipeline"]
    assert [place["place"] for place in shown["places"]] == ["head", "stage 0"]
    assert set(shown["peers"]) == {"stage 1"}


def test_keys_are_replaced_only_when_asked(keys, tmp_path: Path) -> None:
    assert keys("generate", "--num-stages", 2, "-o", tmp_path / "k").code == 0
    ran = keys("generate", "--num-stages", 2, "-o", tmp_path / "k")
    assert ran.code == 3
    assert "--force" in ran.err
    assert keys("generate", "--num-stages", 2, "-o", tmp_path / "k", "--force").code == 0


def test_files_of_two_pipelines_in_one_directory_are_refused(keys, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert keys("generate", "--num-stages", 2, "-o", tmp_path / name).code == 0
    (tmp_path / "b" / "stage_1.keys").rename(tmp_path / "a" / "stage_1.keys")
    ran = keys("show", tmp_path / "a")
    assert ran.code == 3
    assert "do not fit together" in ran.err


def test_a_directory_without_keys_is_refused(keys, tmp_path: Path) -> None:
    assert keys("show", tmp_path).code == 3
    assert keys("show", tmp_path / "none").code == 3
    assert keys("generate", "--num-stages", 0, "-o", tmp_path / "k").code == 2
