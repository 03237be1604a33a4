# SPDX-License-Identifier: Apache-2.0
"""`zpptool chat`, `complete` and `bench` against a pipeline of the embedded engine; and what they refuse."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("httpx")

import httpx

from tests.commands import typed_here
from tests.conftest import Ran
from tests.served import Served, serving

pytestmark = [pytest.mark.torch, pytest.mark.model, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def served(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("ask")
    options = ("--num-stages", 2, "--served-model-name", "toy", "--log-dir", directory / "logs")
    with serving(directory, speaker, *options) as command:
        yield command


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    return typed_here(monkeypatch, capsys)


def test_complete_prints_what_the_api_answers(served: Served, run: Callable[..., Ran]) -> None:
    words = ["complete", "one two three", "--url", served.url, "--max-tokens", 8, "--temperature", 0]
    body = {"prompt": "one two three", "max_tokens": 8, "temperature": 0}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60, trust_env=False).json()["choices"][0]
    shown = run(*words)
    assert shown.code == 0, shown.err
    as_json = run(*words, "--json").json
    assert (as_json["text"], as_json["finish_reason"]) == (answer["text"], answer["finish_reason"])
    assert as_json["model"] == "toy"
    assert shown.out.count("\n") == answer["text"].count("\n") + 1


def test_chat_holds_a_conversation(served: Served, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["chat", "--url", served.url, "--max-tokens", 5, "--temperature", 0]
    single = run(*words, "hello", "--json")
    assert single.code == 0, single.err
    assert single.json["finish_reason"] in ("length", "stop")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nand again\n"))
    assert run(*words).code == 0
    refused = run("chat", "--json", "--url", served.url)
    assert refused.code == 2


def test_bench_measures_every_request(served: Served, run: Callable[..., Ran]) -> None:
    words = ["bench", "--url", served.url, "--num-prompts", 6, "--input-len", 8, "--output-len", 4]
    result = run(*words, "--max-concurrency", 3, "--json").json
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (6, 0, 24)
    assert 0 < result["mean_ttft_ms"] <= result["mean_e2el_ms"]
    shown = run(*words, "--max-concurrency", 3)
    assert "6 of 6 requests" in shown.out
    assert "time to first token" in shown.out


def test_a_refusal_names_its_reason(served: Served, run: Callable[..., Ran]) -> None:
    other = run("complete", "x", "--url", served.url, "--served-model-name", "other", "--json")
    assert other.code == 2
    assert "other" in json.dumps(other.json["error"])
    nowhere = run("complete", "x", "--url", "http://127.0.0.1:9")
    assert nowhere.code == 5
    assert "no pipeline answers" in nowhere.err
