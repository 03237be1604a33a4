# SPDX-License-Identifier: Apache-2.0
"""The embedded engine's part of OpenAI's Responses API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("starlette")

from tests.scripted import EOS, ScriptedApi, scripted_api

pytestmark = pytest.mark.torch

PATH = "/v1/responses"


@pytest.fixture
def api(tiny_model: Callable[..., Path]) -> Iterator[ScriptedApi]:
    with scripted_api(tiny_model("llama")) as api:
        api.script.reply = [*api.ids("fine"), EOS]
        yield api


def respond(api: ScriptedApi, **body: Any) -> dict[str, Any]:
    response = api.client.post(PATH, json={"input": "ask", **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def prompt_of(api: ScriptedApi) -> str:
    return str(api.served.decode(api.script.asked[-1][0]))


def streamed(api: ScriptedApi, **body: Any) -> list[dict[str, Any]]:
    text = api.client.post(PATH, json={"input": "ask", "stream": True, **body}).text
    blocks = [block.split("\n") for block in text.split("\n\n") if block]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [kind.removeprefix("event: ") for kind, _ in blocks] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def test_a_response_has_openais_format(api: ScriptedApi) -> None:
    answer = respond(api, instructions="be brief")
    assert prompt_of(api) == "[system]be brief\n[user]ask\n[a]"
    assert (answer["object"], answer["status"], answer["model"]) == ("response", "completed", "tiny")
    (message,) = answer["output"]
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    assert message["content"] == [{"type": "output_text", "text": "fine", "annotations": [], "logprobs": None}]
    assert (answer["usage"]["output_tokens"], answer["usage"]["total_tokens"]) == (
        5,
        answer["usage"]["input_tokens"] + 5,
    )


def test_the_openai_package_reads_it(api: ScriptedApi) -> None:
    types = pytest.importorskip("openai.types.responses")
    whole = types.Response.model_validate(respond(api, max_output_tokens=2, include=["message.output_text.logprobs"]))
    assert (whole.output_text, whole.incomplete_details.reason) == ("fi", "max_output_tokens")
    assert len(whole.output[0].content[0].logprobs) == 2


def test_the_events_of_a_stream_add_up_to_the_response(api: ScriptedApi) -> None:
    events = streamed(api)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * 4,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    done = events[-1]["response"]
    assert text == "fine" == events[8]["text"] == done["output"][0]["content"][0]["text"]
    assert done["id"] == events[0]["response"]["id"]
    assert {event["item_id"] for event in events if "item_id" in event} == {done["output"][0]["id"]}


def test_a_fault_in_the_middle_of_a_stream_is_an_event(api: ScriptedApi) -> None:
    api.script.fails_after = 2
    last = streamed(api)[-1]
    assert (last["type"], last["message"]) == ("error", "stage 1: step failed: out of memory")


def test_the_input_may_be_a_conversation(api: ScriptedApi) -> None:
    api.served.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}({{ c.function.name }})"
        "{% endfor %};{% endfor %}"
    )
    respond(
        api,
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "2"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
            {"role": "user", "content": "c"},
        ],
    )  # fmt: skip
    assert prompt_of(api) == "[user]a;[assistant](add);[tool]2;[assistant]b;[user]c;"


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("input", {"input": []}), ("input", {"input": 3}),
        ("input", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        ("input", {"input": [{"type": "reasoning", "content": []}]}),
        ("previous_response_id", {"previous_response_id": "resp_1"}), ("background", {"background": True}),
        ("tools", {"tools": [{"type": "function"}]}), ("text", {"text": {"format": {"type": "json_object"}}}),
        ("truncation", {"truncation": "auto"}), ("max_output_tokens", {"max_output_tokens": 0}), ("n", {"n": 2}),
        ("include", {"include": ["reasoning.encrypted_content"]}), ("model", {"model": "other"}),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(api: ScriptedApi, param: str, body: dict[str, Any]) -> None:
    status = 404 if param == "model" else 400
    assert api.refusal(PATH, status, **{"input": "ask", **body})["param"] == param
    assert api.script.asked == []


def test_no_response_is_stored(api: ScriptedApi) -> None:
    stored = respond(api)["id"]
    for response in (api.client.get(f"{PATH}/{stored}"), api.client.post(f"{PATH}/{stored}/cancel")):
        assert response.status_code == 404
        assert f"Response with id '{stored}' not found" in response.json()["error"]["message"]
