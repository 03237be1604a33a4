# SPDX-License-Identifier: Apache-2.0
"""What a request may ask of its answers: several of them, penalties, log probabilities, the prompt before them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("starlette")

from tests.scripted import Scripted, ScriptedApi, scripted_api
from zpptool.engines.transformers.api.served import served_model
from zpptool.engines.transformers.sampling import SamplingParams
from zpptool.errors import ExitCode, ZppError

pytestmark = pytest.mark.torch


def with_generation_config(source: Path, directory: Path, **fields: Any) -> Path:
    """The config and tokenizer of a checkpoint with this generation_config.json."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (directory / name).write_bytes((source / name).read_bytes())
    (directory / "generation_config.json").write_text(json.dumps(fields))
    return directory


def test_n_answers_to_each_prompt_have_seeds_of_their_own(api: ScriptedApi) -> None:
    api.script.reply = [50]
    answer = api.complete(prompt=["a", "b"], n=3, seed=7, max_tokens=2, return_token_ids=True)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    prompts = [choice["prompt_token_ids"] for choice in answer["choices"]]
    assert prompts == [api.ids("a")] * 3 + [api.ids("b")] * 3
    asked = sorted((prompt, sampling.seed) for prompt, _, sampling in api.script.asked)
    assert asked == [(prompt, seed) for prompt in (api.ids("a"), api.ids("b")) for seed in (7, 8, 9)]
    assert answer["usage"]["prompt_tokens"] == 2, "a prompt is counted once"
    assert answer["usage"]["completion_tokens"] == 12


def test_seeds_stay_in_64_bits(api: ScriptedApi) -> None:
    api.script.reply = [50]
    api.complete(n=2, seed=2**63 - 1, max_tokens=1)
    assert {sampling.seed for *_, sampling in api.script.asked} == {2**63 - 1, -(2**63)}


def test_n_answers_without_a_seed_differ(api: ScriptedApi) -> None:
    api.script.reply = [50]
    api.chat({"role": "user", "content": "x"}, n=4, max_tokens=1)
    assert len({sampling.seed for *_, sampling in api.script.asked}) == 4


def test_penalties_reach_the_sampler(api: ScriptedApi) -> None:
    api.script.reply = [50]
    api.complete(temperature=0, presence_penalty=0.5, frequency_penalty=-1, repetition_penalty=1.25, min_p=0.5, seed=3)
    assert api.script.asked[0][2] == SamplingParams(
        seed=3, presence_penalty=0.5, frequency_penalty=-1, repetition_penalty=1.25, min_p=0.5
    )


def test_the_prompt_is_echoed(api: ScriptedApi) -> None:
    api.script.reply = api.ids("!")
    assert api.complete(echo=True, max_tokens=1, n=2)["choices"][1]["text"] == "ask!"
    assert api.complete(prompt=api.ids("as ids"), echo=True, max_tokens=1)["choices"][0]["text"] == "as ids!"
    (choice,) = api.complete(prompt="x" * 512, echo=True, max_tokens=0)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("x" * 512, "length")
    pieces = api.events(echo=True, max_tokens=2)
    assert [piece["choices"][0]["text"] for piece in pieces] == ["ask!", "!"]
    assert api.refusal(prompt="x", echo=True, logprobs=1)["param"] == "echo"


def test_logprobs_of_a_completion(api: ScriptedApi) -> None:
    api.script.reply = api.ids("hi")
    (choice,) = api.complete(max_tokens=2, logprobs=0, seed=1)["choices"]
    assert choice["logprobs"] == {
        "text_offset": [0, 1],
        "token_logprobs": [-1.5, -1.5],
        "tokens": ["h", "i"],
        "top_logprobs": [{"h": -1.5}, {"i": -1.5}],
    }
    assert api.script.asked[0][2].logprobs == 0
    (choice,) = api.complete(max_tokens=1, logprobs=3)["choices"]
    assert sorted(choice["logprobs"]["top_logprobs"][0].values()) == [-9999.0, -2.0, -1.5], "JSON has no infinity"
    pieces = api.events(max_tokens=2, logprobs=1)
    assert [piece["choices"][0]["logprobs"]["text_offset"] for piece in pieces] == [[0], [1]]
    assert api.complete(max_tokens=1)["choices"][0]["logprobs"] is None


def test_logprobs_of_a_chat(api: ScriptedApi) -> None:
    api.script.reply = api.ids("hi")
    question = {"role": "user", "content": "x"}
    (choice,) = api.chat(question, max_tokens=1, logprobs=True, top_logprobs=2)["choices"]
    (entry,) = choice["logprobs"]["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("h", -1.5, [104])
    assert [top["logprob"] for top in entry["top_logprobs"]] == [-1.5, -2.0]
    assert api.chat(question, max_tokens=1, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    refused = api.refusal("/v1/chat/completions", messages=[question], top_logprobs=2)
    assert refused["param"] == "top_logprobs"


def test_token_ids_of_a_chat_are_where_vllm_has_them(api: ScriptedApi) -> None:
    api.script.reply = [50, 51]
    question = {"role": "user", "content": "x"}
    answer = api.chat(question, max_tokens=2, return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == [50, 51]
    assert answer["prompt_token_ids"] == api.script.asked[0][0]
    assert "prompt_token_ids" not in answer["choices"][0]
    first, second = api.events("/v1/chat/completions", messages=[question], max_tokens=2, return_token_ids=True)
    assert first["prompt_token_ids"] == api.script.asked[0][0]
    assert "prompt_token_ids" not in second


def test_usage_in_every_chunk(api: ScriptedApi) -> None:
    api.script.reply = [50]
    options = {"include_usage": True, "continuous_usage_stats": True}
    *pieces, last = api.events(max_tokens=3, stream_options=options)
    assert [piece["usage"]["completion_tokens"] for piece in pieces] == [1, 2, 3]
    assert last["usage"] == pieces[-1]["usage"]
    assert api.events(max_tokens=1, stream_options={"include_usage": False})[0]["usage"] is None


def test_replayed_answers_with_empty_fields(api: ScriptedApi) -> None:
    """`message.model_dump()` of OpenAI's clients, and of those that keep empty lists."""
    api.script.reply = [50]
    empty = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    replayed = {"role": "assistant", "content": "Paris", **empty}
    silent = {"role": "assistant", "content": None, **empty}
    part = {"type": "text", "text": "b", "cache_control": None}
    api.chat({"role": "user", "content": [part], "name": None}, replayed, silent, max_tokens=1)
    assert api.served.decode(api.script.asked[0][0]) == "[user]b\n[assistant]Paris\n[assistant]\n[a]"


def test_a_developers_message_is_a_system_message(api: ScriptedApi) -> None:
    api.script.reply = [50]
    api.chat({"role": "developer", "content": "be brief"}, max_tokens=1)
    api.served.tokenizer.chat_template += "{# knows developer #}"
    api.chat({"role": "developer", "content": "be brief"}, max_tokens=1)
    prompts = [api.served.decode(asked[0]) for asked in api.script.asked]
    assert prompts == ["[system]be brief\n[a]", "[developer]be brief\n[a]"]


def test_a_template_that_drops_system_messages_is_reported(api: ScriptedApi) -> None:
    api.served.tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "x"}]
    error = api.refusal("/v1/chat/completions", messages=messages)
    assert "messages.0.role" in error["message"]
    assert "leaves out" in error["message"]


def test_the_checkpoints_own_defaults(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    directory = with_generation_config(
        tiny_model("llama"), tmp_path, temperature=0.25, top_k=5, top_p=0.5, repetition_penalty=1.5, max_new_tokens=9
    )
    with scripted_api(directory) as api:
        api.script.reply = [50]
        api.complete(seed=1)
        api.complete(seed=1, temperature=0, top_k=-1, repetition_penalty=1.0)
        api.chat({"role": "user", "content": "x"}, seed=1)
        api.chat({"role": "user", "content": "x"}, seed=1, max_tokens=20)
    defaults = SamplingParams(0.25, 5, 0.5, 1, repetition_penalty=1.5)
    assert [asked[2] for asked in api.script.asked] == [
        defaults, SamplingParams(0.0, 0, 0.5, 1), defaults, defaults,
    ]  # fmt: skip
    assert [asked[1] for asked in api.script.asked] == [16, 16, 9, 20]


@pytest.mark.parametrize(
    "fields",
    [{"temperature": -1}, {"temperature": "hot"}, {"top_k": 1.5}, {"top_p": 7}, {"max_new_tokens": 0},
     {"repetition_penalty": True}, {"eos_token_id": "end"}],
)  # fmt: skip
def test_defaults_that_cannot_be_used(tiny_model: Callable[..., Path], tmp_path: Path, fields: dict[str, Any]) -> None:
    directory = with_generation_config(tiny_model("llama"), tmp_path, **fields)
    with pytest.raises(ZppError, match=f"generation_config.json: .*{next(iter(fields))}") as caught:
        served_model(directory, Scripted().generate, lambda: True)
    assert caught.value.exit_code == ExitCode.INVALID
