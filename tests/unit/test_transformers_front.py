# SPDX-License-Identifier: Apache-2.0
"""The embedded engine's HTTP API in front of a scripted model: formats, ends of answers, errors of the pipeline."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("starlette")

from tests.scripted import EOS, Scripted, ScriptedApi
from zpptool.engines.transformers.api.served import served_model
from zpptool.engines.transformers.sampling import SamplingParams

pytestmark = pytest.mark.torch


def test_the_models_end_tokens_and_limits_are_found(api: ScriptedApi) -> None:
    assert api.served.eos_ids == {EOS}
    assert (api.served.context.tokens, api.served.vocab_size) == (512, 320)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 7}, {5, 6}),
        ({"eos_token_id": 5}, {"eos_token_id": 7}, {5}),
        ({}, {"eos_token_id": [7, 8]}, {7, 8}),
        (None, {"eos_token_id": 7}, {7}),
        ({}, {"eos_token_id": None}, {EOS}),
    ],
)
def test_where_the_end_tokens_are_found(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    generation: dict[str, Any] | None,
    config: dict[str, Any],
    expected: set[int],
) -> None:
    """generation_config.json, else config.json, else the tokenizer."""
    source = tiny_model("llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert served_model(tmp_path, Scripted().generate, lambda: True).eos_ids == expected


def test_a_completion_has_openais_format(api: ScriptedApi) -> None:
    api.script.reply = [*api.ids("fine"), EOS]
    answer = api.complete(return_token_ids=True)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "tiny"
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": None,
    }
    (choice,) = answer["choices"]
    assert (choice["index"], choice["text"]) == (0, "fine")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    assert choice["token_ids"] == api.script.reply, "the token that ends an answer is one of its tokens, as in vLLM"
    assert choice["prompt_token_ids"] == api.ids("ask")
    assert api.complete()["choices"][0]["token_ids"] is None


def test_defaults_are_openais(api: ScriptedApi) -> None:
    api.script.reply = [50]
    (choice,) = api.complete()["choices"]
    assert choice["finish_reason"] == "length"
    _prompt, max_new_tokens, sampling = api.script.asked[0]
    assert max_new_tokens == 16
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, 0, 1.0)
    api.complete()
    assert api.script.asked[1][2].seed != sampling.seed, "without a seed every answer has another one"


def test_sampling_reaches_the_model(api: ScriptedApi) -> None:
    api.script.reply = [50]
    api.complete(temperature=0.5, top_p=0.25, top_k=7, seed=11, max_tokens=2)
    api.complete(top_k=-1, temperature=0, seed=None)
    assert api.script.asked[0][1:] == (2, SamplingParams(0.5, 7, 0.25, 11))
    assert (api.script.asked[1][2].temperature, api.script.asked[1][2].top_k) == (0, 0)


def test_prompts_in_all_four_forms(api: ScriptedApi) -> None:
    api.script.reply = [50]
    ids = api.ids("ab")
    for prompt, expected in (
        ("ab", [ids]),
        (["ab", "c"], [ids, api.ids("c")]),
        (ids, [ids]),
        ([ids, [9]], [ids, [9]]),
    ):
        api.script.asked.clear()
        choices = api.complete(prompt=prompt, return_token_ids=True)["choices"]
        assert [choice["prompt_token_ids"] for choice in choices] == expected
        assert [choice["index"] for choice in choices] == list(range(len(expected)))
        assert sorted(asked[0] for asked in api.script.asked) == sorted(expected)


def test_several_prompts_are_computed_at_once(api: ScriptedApi) -> None:
    api.script.reply = [50]
    api.script.parties = threading.Barrier(3)
    assert len(api.complete(prompt=["a", "b", "c"], max_tokens=2)["choices"]) == 3


def test_eos_does_not_end_an_answer_with_ignore_eos(api: ScriptedApi) -> None:
    api.script.reply = [*api.ids("x"), EOS]
    (choice,) = api.complete(ignore_eos=True, max_tokens=4, return_token_ids=True)["choices"]
    assert choice["token_ids"] == api.script.reply * 2
    assert (choice["text"], choice["finish_reason"]) == ("xx", "length")


def test_stop_strings_and_stop_tokens(api: ScriptedApi) -> None:
    api.script.reply = api.ids("one two three")
    (choice,) = api.complete(stop=["zzz", " tw"], return_token_ids=True)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("one", "stop", " tw")
    assert choice["token_ids"] == api.ids("one tw")
    (w,) = api.ids("w")
    (choice,) = api.complete(stop_token_ids=[w], return_token_ids=True)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("one t", "stop", w)
    assert api.script.closed == 2, "a sequence is cancelled when its answer has ended"


def test_streamed_pieces_are_whole_characters_and_add_up_to_the_answer(api: ScriptedApi) -> None:
    text = "naïve 日本語 🙂!"
    api.script.reply = [*api.ids(text), EOS]
    chunks = api.events(max_tokens=64, return_token_ids=True, stream_options={"include_usage": True})
    *pieces, usage = chunks
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == text
    assert all("\ufffd" not in piece["choices"][0]["text"] for piece in pieces)
    assert [token for piece in pieces for token in piece["choices"][0]["token_ids"]] == api.script.reply
    assert [piece["choices"][0]["finish_reason"] for piece in pieces[-2:]] == [None, "stop"]
    assert pieces[0]["choices"][0]["prompt_token_ids"] == api.ids("ask")
    assert pieces[1]["choices"][0]["prompt_token_ids"] is None
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": len(api.script.reply),
        "total_tokens": 3 + len(api.script.reply),
        "prompt_tokens_details": None,
    }
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_an_answer_that_ends_in_the_middle_of_a_character_shows_it(api: ScriptedApi) -> None:
    api.script.reply = api.ids("é")[:1]
    assert api.complete(max_tokens=1)["choices"][0]["text"] == "\ufffd"


def test_chats(api: ScriptedApi) -> None:
    api.script.reply = [*api.ids("yes"), EOS]
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    answer = api.client.post(
        "/v1/chat/completions", json={"messages": messages, "temperature": 0, "tools": None}
    ).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "yes"}
    prompt, max_new_tokens, _ = api.script.asked[0]
    assert api.served.decode(prompt) == "[user]a\nb\n[a]"
    assert max_new_tokens == api.served.context.tokens - len(prompt), "a chat may continue up to the model's limit"
    chunks = api.events("/v1/chat/completions", messages=messages, max_completion_tokens=3)
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "y"}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["y", "e", "s"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_tokenize(api: ScriptedApi) -> None:
    plain = api.client.post("/tokenize", json={"prompt": "ab"}).json()
    assert plain == {"tokens": api.ids("ab"), "count": 2, "max_model_len": 512, "token_strs": None}
    chat = {"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": True}
    assert api.served.decode(api.client.post("/tokenize", json=chat).json()["tokens"]) == "[user]hi\n[a]"
    assert api.refusal("/tokenize")["param"] == "prompt"


def test_an_error_of_the_pipeline_is_a_server_error(api: ScriptedApi) -> None:
    api.script.reply, api.script.fails_after = [50], 2
    assert "stage 1: step failed" in api.refusal(status=500, prompt="ask")["message"]
    *pieces, fault = api.events()
    assert len(pieces) == api.script.closed == 2
    assert "stage 1: step failed" in fault["error"]["message"]
    assert api.client.get("/health").status_code == 200
    api.script.healthy = False
    assert api.client.get("/health").status_code == 503
    assert api.refusal(status=503, prompt="ask")["type"] == "server_error"
