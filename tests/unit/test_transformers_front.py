# SPDX-License-Identifier: Apache-2.0
"""The embedded engine's HTTP API in front of a scripted model: formats, ends of answers, refusals, errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("starlette")

from starlette.testclient import TestClient

from zpptool.engines.transformers.api.front import Front
from zpptool.engines.transformers.api.served import ServedModel, served_model
from zpptool.engines.transformers.sampling import SamplingParams
from zpptool.errors import stage_error

pytestmark = pytest.mark.torch

EOS = 1
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


@dataclass
class Scripted:
    """Answers every prompt with `reply`, repeated where an answer may be longer, and records its calls.

    Attributes:
        reply: token ids.
        fails_after: the number of tokens of an answer before an error; None for no error.
        parties: answers that must be in progress at once before any of them continues.
        asked: the calls: prompt, greatest number of tokens, sampling.
        closed: the number of sequences that have ended.
    """

    reply: list[int] = field(default_factory=list)
    fails_after: int | None = None
    parties: threading.Barrier | None = None
    asked: list[tuple[list[int], int, SamplingParams]] = field(default_factory=list)
    closed: int = 0
    healthy: bool = True

    def generate(
        self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Collection[int], sampling: SamplingParams
    ) -> Generator[int, None, None]:
        self.asked.append((list(prompt_ids), max_new_tokens, sampling))
        try:
            for position in range(max_new_tokens):
                if position == self.fails_after:
                    raise stage_error("stage 1: step failed: out of memory")
                if self.parties is not None:
                    self.parties.wait(10)
                token = self.reply[position % len(self.reply)]
                yield token
                if token in stop_ids:
                    return
        finally:
            self.closed += 1


@pytest.fixture
def script() -> Scripted:
    return Scripted()


@pytest.fixture
def served(tiny_model: Callable[..., Path], script: Scripted) -> ServedModel:
    model = served_model(tiny_model("llama"), script.generate, lambda: script.healthy, "tiny")
    model.tokenizer.chat_template = TEMPLATE
    return model


@pytest.fixture
def client(served: ServedModel) -> Iterator[TestClient]:
    with TestClient(Front(served).app()) as client:
        yield client


def complete(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={"prompt": "ask", **body})
    assert response.status_code == 200, response.text
    return response.json()


def refusal(client: TestClient, path: str = "/v1/completions", status: int = 400, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    return error


def events(client: TestClient, path: str = "/v1/completions", **body: Any) -> list[dict[str, Any]]:
    response = client.post(path, json={"prompt": "ask", **body, "stream": True} if "messages" not in body else body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_the_models_end_tokens_and_limits_are_found(served: ServedModel) -> None:
    assert served.eos_ids == {EOS}
    assert (served.max_model_len, served.vocab_size) == (512, 320)


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


def test_a_completion_has_openais_format(client: TestClient, served: ServedModel, script: Scripted) -> None:
    script.reply = [*served.encode("fine"), EOS]
    answer = complete(client, return_token_ids=True)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "tiny"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    (choice,) = answer["choices"]
    assert (choice["index"], choice["text"]) == (0, "fine")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    assert choice["token_ids"] == script.reply, "the token that ends an answer is one of its tokens, as in vLLM"
    assert choice["prompt_token_ids"] == served.encode("ask")
    assert complete(client)["choices"][0]["token_ids"] is None


def test_defaults_are_openais(client: TestClient, script: Scripted) -> None:
    script.reply = [50]
    (choice,) = complete(client)["choices"]
    assert choice["finish_reason"] == "length"
    _prompt, max_new_tokens, sampling = script.asked[0]
    assert max_new_tokens == 16
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, 0, 1.0)
    complete(client)
    assert script.asked[1][2].seed != sampling.seed, "without a seed every answer has another one"


def test_sampling_reaches_the_model(client: TestClient, script: Scripted) -> None:
    script.reply = [50]
    complete(client, temperature=0.5, top_p=0.25, top_k=7, seed=11, max_tokens=2)
    complete(client, top_k=-1, temperature=0, seed=None)
    assert script.asked[0][1:] == (2, SamplingParams(0.5, 7, 0.25, 11))
    assert (script.asked[1][2].temperature, script.asked[1][2].top_k) == (0, 0)


def test_prompts_in_all_four_forms(client: TestClient, served: ServedModel, script: Scripted) -> None:
    script.reply = [50]
    ids = served.encode("ab")
    for prompt, expected in (
        ("ab", [ids]),
        (["ab", "c"], [ids, served.encode("c")]),
        (ids, [ids]),
        ([ids, [9]], [ids, [9]]),
    ):
        script.asked.clear()
        choices = complete(client, prompt=prompt, return_token_ids=True)["choices"]
        assert [choice["prompt_token_ids"] for choice in choices] == expected
        assert [choice["index"] for choice in choices] == list(range(len(expected)))
        assert sorted(asked[0] for asked in script.asked) == sorted(expected)


def test_several_prompts_are_computed_at_once(client: TestClient, script: Scripted) -> None:
    script.reply = [50]
    script.parties = threading.Barrier(3)
    assert len(complete(client, prompt=["a", "b", "c"], max_tokens=2)["choices"]) == 3


def test_eos_does_not_end_an_answer_with_ignore_eos(client: TestClient, served: ServedModel, script: Scripted) -> None:
    script.reply = [*served.encode("x"), EOS]
    (choice,) = complete(client, ignore_eos=True, max_tokens=4, return_token_ids=True)["choices"]
    assert choice["token_ids"] == script.reply * 2
    assert (choice["text"], choice["finish_reason"]) == ("xx", "length")


def test_stop_strings_and_stop_tokens(client: TestClient, served: ServedModel, script: Scripted) -> None:
    script.reply = served.encode("one two three")
    (choice,) = complete(client, stop=["zzz", " tw"], return_token_ids=True)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("one", "stop", " tw")
    assert choice["token_ids"] == served.encode("one tw")
    (w,) = served.encode("w")
    (choice,) = complete(client, stop_token_ids=[w], return_token_ids=True)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("one t", "stop", w)
    assert script.closed == 2, "a sequence is cancelled when its answer has ended"


def test_streamed_pieces_are_whole_characters_and_add_up_to_the_answer(
    client: TestClient, served: ServedModel, script: Scripted
) -> None:
    text = "naïve 日本語 🙂!"
    script.reply = [*served.encode(text), EOS]
    chunks = events(client, max_tokens=64, return_token_ids=True, stream_options={"include_usage": True})
    *pieces, usage = chunks
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == text
    assert all("\ufffd" not in piece["choices"][0]["text"] for piece in pieces)
    assert [token for piece in pieces for token in piece["choices"][0]["token_ids"]] == script.reply
    assert [piece["choices"][0]["finish_reason"] for piece in pieces[-2:]] == [None, "stop"]
    assert pieces[0]["choices"][0]["prompt_token_ids"] == served.encode("ask")
    assert pieces[1]["choices"][0]["prompt_token_ids"] is None
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": len(script.reply),
        "total_tokens": 3 + len(script.reply),
    }
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_an_answer_that_ends_in_the_middle_of_a_character_shows_it(
    client: TestClient, served: ServedModel, script: Scripted
) -> None:
    script.reply = served.encode("é")[:1]
    assert complete(client, max_tokens=1)["choices"][0]["text"] == "\ufffd"


def test_chats(client: TestClient, served: ServedModel, script: Scripted) -> None:
    script.reply = [*served.encode("yes"), EOS]
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    answer = client.post("/v1/chat/completions", json={"messages": messages, "temperature": 0, "tools": None}).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "yes"}
    prompt, max_new_tokens, _ = script.asked[0]
    assert served.decode(prompt) == "[user]a\nb\n[a]"
    assert max_new_tokens == served.max_model_len - len(prompt), "a chat may continue up to the model's limit"
    chunks = events(client, "/v1/chat/completions", messages=messages, stream=True, max_completion_tokens=3)
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "y"}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["y", "e", "s"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_tokenize(client: TestClient, served: ServedModel) -> None:
    plain = client.post("/tokenize", json={"prompt": "ab"}).json()
    assert plain == {"tokens": served.encode("ab"), "count": 2, "max_model_len": 512}
    chat = {"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": True}
    assert served.decode(client.post("/tokenize", json=chat).json()["tokens"]) == "[user]hi\n[a]"
    assert refusal(client, "/tokenize")["param"] == "prompt"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None), ("prompt", ""), ("prompt", []), ("prompt", [[]]), ("prompt", 3), ("prompt", [320]),
        ("prompt", [-1]), ("prompt", ["a", 1]), ("prompt", [5] * 512), ("max_tokens", 0), ("max_tokens", "5"),
        ("max_tokens", 510), ("temperature", -1), ("temperature", "hot"), ("top_p", 0), ("top_p", 1.5),
        ("top_k", -2), ("seed", 2**63), ("stop", [""]), ("stop", 3), ("stream", "yes"),
        ("n", 2), ("best_of", 2), ("echo", True), ("suffix", "x"), ("logprobs", 0), ("logprobs", 5),
        ("logprobs", True), ("frequency_penalty", 0.5), ("presence_penalty", -1), ("logit_bias", {"5": 1}),
        ("response_format", {"type": "json_object"}), ("tools", [{}]), ("min_p", 0.1), ("guided_json", {}),
        ("beam_width", 4),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(
    client: TestClient, script: Scripted, field: str, value: object
) -> None:
    script.reply = [50]
    error = refusal(client, **{"prompt": "ask", field: value})
    assert error["param"] == field
    assert error["message"].startswith(field)
    assert error["type"] == "invalid_request_error"
    assert script.asked == []


def test_values_that_request_nothing_are_accepted(client: TestClient, script: Scripted) -> None:
    script.reply = [50]
    complete(
        client, n=1, best_of=1, echo=False, suffix=None, logprobs=None, frequency_penalty=0.0, presence_penalty=0,
        logit_bias={}, tools=[], response_format={"type": "text"}, user="me", stop=None, model="tiny",
    )  # fmt: skip
    assert len(script.asked) == 1


@pytest.mark.parametrize(
    ("messages", "location"),
    [
        ([], "messages"),
        ([{"content": "x"}], "messages.0.role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages.0.content"),
        ([{"role": "assistant", "content": "x", "tool_calls": []}], "messages.0.tool_calls"),
    ],
)
def test_messages_that_cannot_be_read(client: TestClient, messages: list[Any], location: str) -> None:
    error = refusal(client, "/v1/chat/completions", messages=messages)
    assert error["param"] == "messages"
    assert location in error["message"]


def test_a_model_without_a_chat_template_and_one_that_refuses(client: TestClient, served: ServedModel) -> None:
    messages = [{"role": "user", "content": "x"}]
    served.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    assert "roles must alternate" in refusal(client, "/v1/chat/completions", messages=messages)["message"]
    served.tokenizer.chat_template = None
    assert "no chat template" in refusal(client, "/v1/chat/completions", messages=messages)["message"]


def test_bodies_that_are_not_requests(client: TestClient) -> None:
    for body in (b"{", b"[]", b"\xff", b""):
        response = client.post("/v1/completions", content=body)
        assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


def test_another_model_is_refused(client: TestClient) -> None:
    assert refusal(client, status=404, prompt="x", model="huge")["param"] == "model"
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_an_error_of_the_pipeline_is_a_server_error(client: TestClient, script: Scripted) -> None:
    script.reply, script.fails_after = [50], 2
    assert "stage 1: step failed" in refusal(client, status=500, prompt="ask")["message"]
    *pieces, fault = events(client)
    assert len(pieces) == script.closed == 2
    assert "stage 1: step failed" in fault["error"]["message"]
    assert client.get("/health").status_code == 200
    script.healthy = False
    assert client.get("/health").status_code == 503
    assert refusal(client, status=503, prompt="ask")["type"] == "server_error"
