# SPDX-License-Identifier: Apache-2.0
"""A proof counts for later starts only while its record is whole, this user's alone, and about exactly these facts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from zpptool.engines.transformers.proof import verdicts
from zpptool.engines.transformers.proof.verdicts import is_proven, record_proof

pytestmark = pytest.mark.torch

FACTS = {"class": "LlamaForCausalLM", "layers": "0-2", "torch": "2.13"}


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget(monkeypatch)
    return tmp_path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows."""
    monkeypatch.setattr(verdicts, "_in_this_process", set())


def record(cache_home: Path) -> Path:
    (path,) = (cache_home / "zpptool/proofs").iterdir()
    return path


def test_a_later_process_finds_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_proven(FACTS)
    record_proof(FACTS)
    forget(monkeypatch)
    assert is_proven(FACTS)
    for fact in FACTS:
        assert not is_proven({**FACTS, fact: "another"})


def test_a_record_that_was_changed_does_not_count(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_proof(FACTS)
    forget(monkeypatch)
    whole = record(cache_home).read_bytes()
    for content in (b"", whole[:-1], whole + b" ", whole.replace(b"0-2", b"0-3")):
        record(cache_home).write_bytes(content)
        assert not is_proven(FACTS)
    record_proof(FACTS)
    forget(monkeypatch)
    assert is_proven(FACTS)


def test_a_directory_that_others_may_write_does_not_count(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_proof(FACTS)
    forget(monkeypatch)
    (cache_home / "zpptool/proofs").chmod(0o777)
    assert not is_proven(FACTS)


def test_without_a_directory_the_proof_counts_for_this_process(
    cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache_home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home / "file"))
    record_proof(FACTS)
    assert is_proven(FACTS)
    forget(monkeypatch)
    assert not is_proven(FACTS)


def test_a_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    record_proof(FACTS)
    assert (tmp_path / ".cache/zpptool/proofs").is_dir()
    assert not (tmp_path / "relative").exists()


def test_many_writers_leave_one_whole_record(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: record_proof(FACTS), range(100)))
    forget(monkeypatch)
    assert is_proven(FACTS)
    assert record(cache_home).read_bytes()
