# SPDX-License-Identifier: Apache-2.0
"""Fields of vLLM's API beyond OpenAI's: which tokens an answer may have, and how a chat becomes a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("starlette")

from tests.scripted import EOS, ScriptedApi, scripted_api
from zpptool.engines.transformers.token_rules import TokenRules

pytestmark = pytest.mark.torch

USER = {"role": "user", "content": "x"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
TOOL_TEMPLATE = (
    "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments.a }}){% endfor %};{% endfor %}"
    "{% if mood %}{{ mood }}{% endif %}"
)


@pytest.fixture
def api(tiny_model: Callable[..., Path]) -> Iterator[ScriptedApi]:
    with scripted_api(tiny_model("llama")) as api:
        api.script.reply = [50]
        yield api


def rules_of(api: ScriptedApi, **body: Any) -> TokenRules | None:
    api.complete(max_tokens=4, **body)
    rules: TokenRules | None = api.script.asked[-1][2].rules
    return rules


def rendered(api: ScriptedApi, *messages: dict[str, Any], **body: Any) -> str:
    api.chat(*messages, max_tokens=1, **body)
    return str(api.served.decode(api.script.asked[-1][0]))


def test_the_rules_of_a_request(api: ScriptedApi) -> None:
    assert rules_of(api) is None
    assert rules_of(api, logit_bias={"5": 1, "6": -1000}) == TokenRules(bias={5: 1.0, 6: -100.0})
    assert rules_of(api, allowed_token_ids=[7, 5]) == TokenRules(allowed=(7, 5))
    assert rules_of(api, min_tokens=2, stop_token_ids=[9], ignore_eos=True) == TokenRules(
        min_tokens=2, end_ids=tuple(sorted({EOS, 9}))
    )
    rules = rules_of(api, bad_words=["ab"])
    assert rules is not None
    assert rules.banned == (tuple(api.ids("ab")),), "after a space it has one more token, so it is not another spelling"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"320": 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {"x": 1}), ("logit_bias", {"5": "1"}),
        ("allowed_token_ids", []), ("allowed_token_ids", [320]), ("bad_words", [""]), ("min_tokens", -1),
        ("min_tokens", 17), ("skip_special_tokens", "no"), ("include_stop_str_in_output", 1),
    ],
)  # fmt: skip
def test_fields_out_of_range_are_refused_by_name(api: ScriptedApi, field: str, value: object) -> None:
    error = api.refusal(**{"prompt": "ask", "max_tokens": 16, field: value})
    assert (error["param"], error["message"].startswith(field)) == (field, True)
    assert api.script.asked == []


def test_the_text_may_have_the_stop_and_special_tokens(api: ScriptedApi) -> None:
    api.script.reply = [*api.ids("ab"), 0, *api.ids("c"), EOS]
    texts = [
        api.complete(max_tokens=9, **body)["choices"][0]["text"]
        for body in (
            {}, {"skip_special_tokens": False}, {"stop": "b"}, {"stop": "b", "include_stop_str_in_output": True},
            {"include_stop_str_in_output": True, "skip_special_tokens": False},
        )
    ]  # fmt: skip
    assert texts == ["abc", "ab<s>c", "a", "ab", "ab<s>c</s>"]


def test_a_stop_string_counts_from_the_least_number_of_tokens_on(api: ScriptedApi) -> None:
    api.script.reply = [*api.ids("abab"), EOS]
    choice = api.complete(max_tokens=9, stop="b", min_tokens=2)["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("aba", "stop", "b")


def test_log_probabilities_may_name_tokens_by_id(api: ScriptedApi) -> None:
    logprobs = api.complete(max_tokens=2, logprobs=1, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["token_id:50"] * 2
    assert [list(top) for top in logprobs["top_logprobs"]] == [["token_id:50"]] * 2


def test_what_a_template_gets(api: ScriptedApi) -> None:
    api.served.tokenizer.chat_template = TOOL_TEMPLATE
    assert rendered(api, USER, chat_template_kwargs={"mood": "calm", "unknown": 1}) == "[user]x;calm"
    assert rendered(api, USER, tools=[TOOL], tool_choice="none") == "<add>[user]x;"
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "content": "2", "tool_call_id": "c1"}
    assert rendered(api, USER, called, result) == "[user]x;[assistant](add 1);[tool]2;"


def test_a_message_may_have_a_role_and_fields_of_its_own(api: ScriptedApi) -> None:
    assert rendered(api, {"role": "wizard", "content": "x", "mood": 1}) == "[wizard]x\n[a]"
    api.served.tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    error = api.refusal("/v1/chat/completions", messages=[USER, {"role": "wizard", "content": "dropped"}])
    assert "messages.1.role: the model's chat template leaves out" in error["message"]


def test_the_last_message_may_be_continued(api: ScriptedApi) -> None:
    begun = {"role": "assistant", "content": "y"}
    assert (
        rendered(api, USER, begun, continue_final_message=True, add_generation_prompt=False) == "[user]x\n[assistant]y"
    )


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("add_generation_prompt", {"continue_final_message": True}),
        ("continue_final_message", {"continue_final_message": True, "add_generation_prompt": False}),
        ("tools", {"tools": [TOOL]}),
        ("tools", {"tools": [TOOL], "tool_choice": "auto"}),
        ("tool_choice", {"tool_choice": "required"}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"tokenize": True}}),
        ("chat_template", {"chat_template": "x"}),
        ("messages", {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}),
    ],
)
def test_chats_that_are_refused(api: ScriptedApi, param: str, body: dict[str, Any]) -> None:
    assert api.refusal("/v1/chat/completions", **{"messages": [USER], **body})["param"] == param
    assert api.script.asked == []


def test_arguments_of_a_tool_call_that_are_not_json(api: ScriptedApi) -> None:
    api.served.tokenizer.chat_template = TOOL_TEMPLATE
    call = {**CALL, "function": {"name": "add", "arguments": "{"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert "messages.0.tool_calls" in api.refusal("/v1/chat/completions", messages=[message])["message"]
