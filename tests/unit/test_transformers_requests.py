# SPDX-License-Identifier: Apache-2.0
"""What the embedded engine's HTTP API refuses, by name, and what it accepts."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("starlette")

from tests.scripted import ScriptedApi, error_of
from zpptool.engines.transformers.api.body import MAX_BODY_BYTES

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None), ("prompt", ""), ("prompt", []), ("prompt", [[]]), ("prompt", 3), ("prompt", [320]),
        ("prompt", [-1]), ("prompt", ["a", 1]), ("prompt", ["a"] * 1025), ("max_tokens", 0), ("max_tokens", "5"),
        ("max_tokens", -1), ("temperature", -1), ("temperature", "hot"), ("temperature", 2.1), ("top_p", 0),
        ("top_p", 1.5), ("top_k", -2), ("top_k", 2**63), ("top_k", 1e30), ("seed", 2**63), ("stop", [""]), ("stop", 3),
        ("stop", ["x"] * 129), ("stop_token_ids", [2**31]), ("stream", "yes"), ("stream_options", {}),
        ("n", 0), ("n", 129), ("best_of", 2), ("echo", "yes"), ("suffix", "x"), ("logprobs", -1), ("logprobs", 21),
        ("logprobs", True), ("frequency_penalty", 2.5), ("presence_penalty", -3), ("repetition_penalty", 0),
        ("repetition_penalty", 1e-30), ("min_p", 1.5),
        ("response_format", {"type": "json_object"}), ("response_format", {"type": "json_schema"}), ("tools", [{}]),
        ("guided_json", {}), ("structured_outputs", {"regex": "a"}), ("beam_width", 4),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(api: ScriptedApi, field: str, value: object) -> None:
    api.script.reply = [50]
    error = api.refusal(**{"prompt": "ask", field: value})
    assert error["param"] == field
    assert error["message"].startswith(field)
    assert error["type"] == "invalid_request_error"
    assert api.script.asked == []


def test_values_that_request_nothing_are_accepted(api: ScriptedApi) -> None:
    api.script.reply = [50]
    api.complete(
        n=1, best_of=1, echo=False, suffix=None, logprobs=None, frequency_penalty=0.0, presence_penalty=0,
        logit_bias={}, tools=[], response_format={"type": "text"}, user="me", stop=None, model="tiny",
    )  # fmt: skip
    assert len(api.script.asked) == 1


@pytest.mark.parametrize(
    ("messages", "location"),
    [
        ([], "messages"),
        ([{"content": "x"}], "messages.0.role"),
        ([{"role": "", "content": "x"}], "messages.0.role"),
        ([{"role": "tool", "content": "x", "tool_call_id": 1}], "messages.0.tool_call_id"),
        ([{"role": "user", "content": None}], "messages.0.content"),
        ([{"role": "assistant", "content": "x", "reasoning": "y"}], "messages.0.reasoning"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages.0.content"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}], "messages.0.tool_calls"),
    ],
)
def test_messages_that_cannot_be_read(api: ScriptedApi, messages: list[Any], location: str) -> None:
    error = api.refusal("/v1/chat/completions", messages=messages)
    assert error["param"] == "messages"
    assert location in error["message"]


def test_a_model_without_a_chat_template_and_one_that_refuses(api: ScriptedApi) -> None:
    messages = [{"role": "user", "content": "x"}]
    api.served.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    assert "roles must alternate" in api.refusal("/v1/chat/completions", messages=messages)["message"]
    api.served.tokenizer.chat_template = None
    assert "no chat template" in api.refusal("/v1/chat/completions", messages=messages)["message"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not JSON"),
        (b"", "not JSON"),
        (b'{"prompt": "x", "temperature": NaN}', "NaN is no JSON number"),
        (b'{"prompt": "x", "temperature": 1e999}', "temperature: "),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"prompt": "\\ud800"}', "prompt: it has half of a surrogate pair"),
        (b'{"prompt": "x", "stop": ["a", "\\uDfff"]}', "stop: it has half of a surrogate pair"),
        (b'{"prompt": "x", "\\ud800": 1}', "the name of a field has half of a surrogate pair"),
        (b'{"prompt": "\xed\xa0\x80"}', "not JSON"),
        (b'{"prompt": "x", "metadata": ' + b"[" * 100 + b"]" * 100 + b"}", "more than 64 levels"),
        (b'{"prompt": "x", "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "more than 64 levels"),
    ],
)
def test_bodies_that_are_not_requests(api: ScriptedApi, content: bytes, words: str) -> None:
    response = api.client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error = error_of(response.json(), 400)
    assert (error["type"], words in error["message"]) == ("invalid_request_error", True), error
    assert api.script.asked == []


def test_a_whole_surrogate_pair_is_a_character(api: ScriptedApi) -> None:
    api.script.reply = [50]
    body = b'{"prompt": "\\ud83d\\ude42", "max_tokens": 1}'
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    response = api.client.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert api.script.asked[0][0] == api.ids("\U0001f642")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_media_type_that_is_not_json_is_refused(api: ScriptedApi, media_type: str) -> None:
    response = api.client.post("/v1/completions", content=b'{"prompt": "x"}', headers={"content-type": media_type})
    assert "only application/json is allowed" in error_of(response.json(), 400)["message"]


def test_a_body_that_is_too_long_is_refused(api: ScriptedApi) -> None:
    assert str(MAX_BODY_BYTES) in api.refusal(status=413, prompt="x" * MAX_BODY_BYTES)["message"]


def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_clients_know(api: ScriptedApi) -> None:
    words = "This model's maximum context length is 512 tokens. However, your prompt has "
    chars = 512 * api.served.context.chars_per_token
    for prompt, found in (
        ("x" * 512, "512 input tokens"),
        ([5] * 512, "512 input tokens"),
        ([5] * 9999, "9999 input"),
        ("x" * (chars + 1), f"{chars + 1} characters"),
        (["x", "x" * (chars + 1)], "characters"),
    ):
        error = api.refusal(prompt=prompt)
        assert error["message"].startswith(words), error
        assert found in error["message"]
        assert error["param"] == "prompt"
    messages = [{"role": "user", "content": "x" * 510}]
    message = api.refusal("/v1/chat/completions", messages=messages)["message"]
    assert "maximum context length is 512 tokens" in message
    assert api.script.asked == []


def test_an_answer_has_at_most_the_tokens_that_the_prompt_leaves(api: ScriptedApi) -> None:
    """As in vLLM, a greater max_tokens is not an error."""
    api.script.reply = [50]
    (choice,) = api.complete(prompt=[5] * 500, max_tokens=10**30)["choices"]
    assert (choice["finish_reason"], api.script.asked[0][1]) == ("length", 12)
    api.chat({"role": "user", "content": "x"}, max_tokens=600)
    assert api.script.asked[1][1] == 512 - len(api.script.asked[1][0])


def test_another_model_is_refused(api: ScriptedApi) -> None:
    assert api.refusal(status=404, prompt="x", model="huge")["param"] == "model"
    assert api.client.get("/v1/models").json()["data"][0]["id"] == "tiny"
