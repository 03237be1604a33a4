# SPDX-License-Identifier: Apache-2.0
"""The routes of the embedded engine's HTTP API that generate nothing."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("transformers")
pytest.importorskip("starlette")

from tests.scripted import ScriptedApi
from zpptool import __version__

pytestmark = pytest.mark.torch


def test_the_models_card_has_vllms_fields(api: ScriptedApi) -> None:
    (card,) = api.client.get("/v1/models").json()["data"]
    assert abs(card.pop("created") - time.time()) < 600
    assert card == {
        "id": "tiny", "object": "model", "owned_by": "zpptool", "root": api.served.root, "parent": None,
        "max_model_len": 512, "permission": [],
    }  # fmt: skip


def test_version_and_ping(api: ScriptedApi) -> None:
    assert api.client.get("/version").json() == {"version": __version__}
    assert api.client.get("/ping").status_code == 200
    api.script.healthy = False
    assert api.client.post("/ping").status_code == 503


def test_load_counts_the_requests_in_progress(api: ScriptedApi) -> None:
    api.script.reply = [50]
    api.script.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(api.complete, max_tokens=2) for _ in range(2)]
        until = time.monotonic() + 10
        while (load := api.client.get("/load").json()["server_load"]) != 2:
            assert time.monotonic() < until, load
        api.script.gate.set()
        assert [len(answer.result(10)["choices"]) for answer in answers] == [1, 1]
    assert api.client.get("/load").json() == {"server_load": 0}


def test_detokenize_restores_the_text(api: ScriptedApi) -> None:
    assert api.client.post("/detokenize", json={"tokens": [0, *api.ids("ab"), 1]}).json() == {"prompt": "<s>ab</s>"}
    assert api.client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    for tokens in ([320], [-1], ["a"], "ab"):
        assert api.refusal("/detokenize", tokens=tokens)["param"] == "tokens"


def test_tokenize_returns_the_tokens_spelling(api: ScriptedApi) -> None:
    answer = api.client.post("/tokenize", json={"prompt": "a b", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["a", "\u0120", "b"]
    chat = {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False, "model": "tiny"}
    tokens = api.client.post("/tokenize", json=chat).json()["tokens"]
    assert api.served.decode(tokens) == "[user]x\n"
    assert api.client.post("/tokenize", json={**chat, "add_special_tokens": True}).json()["tokens"] == tokens
    both = {"prompt": "x", **chat, "continue_final_message": True}
    assert api.refusal("/tokenize", **both)["param"] == "prompt"


def test_tokenizer_info(api: ScriptedApi) -> None:
    info = api.client.get("/tokenizer_info").json()
    assert info["tokenizer_class"] == type(api.served.tokenizer).__name__
    assert info["eos_token"] == "</s>"


def test_other_requests_are_answered_while_a_prompt_is_tokenised(api: ScriptedApi) -> None:
    """The tokenizer is blocked; the event loop is not."""
    encode, blocked = api.served.tokenizer.encode, threading.Event()
    entered = threading.Event()

    def slow(*args: object, **options: object) -> list[int]:
        entered.set()
        assert blocked.wait(10)
        return encode(*args, **options)

    api.served.tokenizer.encode = slow
    api.script.reply = [50]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.complete, max_tokens=1)
        assert entered.wait(10)
        assert api.client.get("/health").status_code == 200
        assert len(api.complete(prompt=[5], max_tokens=1)["choices"]) == 1
        assert not waiting.done()
        blocked.set()
        assert len(waiting.result(10)["choices"]) == 1
