# SPDX-License-Identifier: Apache-2.0
"""Every feature of stock vLLM's server, with the unsplit engine and with two stages: the answers are equal.

In float32, because in bf16 a sequence's tokens depend on what else is in its batch. Steps are small (64 tokens) and so
is the KV cache (40 blocks of 32 tokens), so that prompts are computed in chunks and sequences preempt each other. The
model has few random weights and a real tokenizer: its answers mean nothing, but a wrong bit changes them, and it is
fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("vllm")

from adapters import write_adapter
from answers import metric, same, together
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording import recorded
from sameness import differences
from sides import Sides, both_sides

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.timeout(1500)]

RANGES = ((0, 1), (1, 4))
ARGUMENTS = (
    "--enforce-eager", "--max-model-len", "1024", "--max-num-batched-tokens", "64", "--max-num-seqs", "32",
    "--block-size", "32", "--num-gpu-blocks-override", "40", "--kv-cache-memory-bytes", str(80 << 20),
    "--enable-prefix-caching", "--enable-prompt-tokens-details",
    "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
    "--enable-lora", "--max-lora-rank", "8", "--max-loras", "2",
    "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
)  # fmt: skip
TESTS = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_REGEX_COMPILATION_TIMEOUT_S": "60", "VLLM_TOOL_PARSE_REGEX_TIMEOUT_SECONDS": "30",  # on a busy machine
    "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
}  # fmt: skip
SETTLE_S = 60
PROMPT = "The capital of France is Paris. The capital of Spain is"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.fixture(scope="module")
def model(speaker: Path) -> Path:
    """The model of both sides."""
    return speaker


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("adapters")
    names = enumerate(("tuned", "second"))
    return [write_adapter(directory / name, model, seed=seed, strength=0.5) for seed, name in names]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which both engine cores record what scheduler and workers pass to each other."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def sides(
    model: Path, adapters: list[Path], records: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    arguments = (*ARGUMENTS, "--lora-modules", f"tuned={adapters[0]}")
    environment = {**ENVIRONMENT, "ZPP_TEST_RECORD": str(records)}
    recording = {
        "unsplit": ("--scheduler-cls", "recording.RecordingScheduler"),
        "pipeline": ("--scheduler-cls", "recording.RecordingStagesScheduler"),
    }
    directory = tmp_path_factory.mktemp("features")
    with both_sides(directory, model, RANGES, arguments, environment, **recording) as running:
        yield running


def body(**changes: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "return_token_ids": True, **changes}


def same_completion(sides: Sides, **changes: Any) -> list[dict[str, Any]]:
    """Send a request to both sides; their choices must be equal in every field, logprobs to `LOGPROB_TOLERANCE`."""
    unsplit, pipeline = sides.ask("/v1/completions", **body(**changes))
    same(unsplit["choices"], pipeline["choices"])
    assert unsplit["usage"]["completion_tokens"] == pipeline["usage"]["completion_tokens"] > 0
    return pipeline["choices"]


@pytest.mark.parametrize(
    "request_fields",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"temperature": 0.8, "seed": 5}, id="seeded"),
        pytest.param({"temperature": 1.1, "seed": 6, "top_p": 0.9, "top_k": 40, "min_p": 0.01}, id="truncated"),
        pytest.param({"temperature": 0.9, "seed": 7, "n": 4}, id="n"),
        pytest.param({"presence_penalty": 1.0, "frequency_penalty": 0.5, "max_tokens": 32}, id="penalties"),
        pytest.param({"repetition_penalty": 1.4, "max_tokens": 32}, id="repetition"),
        pytest.param({"logprobs": 5}, id="logprobs"),
        pytest.param({"prompt_logprobs": 3, "prompt": PROMPT * 12}, id="prompt-logprobs-in-chunks"),
        pytest.param({"echo": True, "logprobs": 2}, id="echo"),
        pytest.param({"logit_bias": {"100": 20.0}}, id="logit-bias"),
        pytest.param({"allowed_token_ids": [30, 260, 314]}, id="allowed-tokens"),
        pytest.param({"ignore_eos": True, "max_tokens": 60}, id="ignore-eos"),
        pytest.param({"use_beam_search": True, "n": 2}, id="beam"),
        pytest.param({"truncate_prompt_tokens": 5}, id="truncated-prompt"),
    ],
)
def test_sampling_parameters(sides: Sides, request_fields: dict[str, Any]) -> None:
    choices = same_completion(sides, **request_fields)
    assert len(choices) == request_fields.get("n", 1)
    if "prompt_logprobs" in request_fields:
        assert len(choices[0]["prompt_logprobs"]) > 128  # more than two chunks


def test_stop_strings_stop_tokens_bad_words_and_min_tokens(sides: Sides) -> None:
    """All with one word that the model generates by itself, some tokens after the first."""
    [plain] = same_completion(sides, logprobs=0, max_tokens=40)
    position, word = next(
        (position, word)
        for position, word in enumerate(plain["logprobs"]["tokens"])
        if position > 2 and len(word) > 2 and word.isascii() and plain["text"].count(word.strip()) == 1
        if tokens_of(sides, word) == [plain["token_ids"][position]] and len(tokens_of(sides, word.strip())) == 1
    )
    token = plain["token_ids"][position]
    [stopped] = same_completion(sides, stop=[word], max_tokens=40)
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", word)
    [included] = same_completion(sides, stop=[word], include_stop_str_in_output=True, max_tokens=40)
    assert included["text"].endswith(word)
    [by_token] = same_completion(sides, stop_token_ids=[token], max_tokens=40)
    assert (by_token["stop_reason"], len(by_token["token_ids"])) == (token, position + 1)
    [longer] = same_completion(sides, stop_token_ids=[token], min_tokens=position + 2, max_tokens=40)
    assert len(longer["token_ids"]) >= position + 2
    [without] = same_completion(sides, bad_words=[word.strip()], max_tokens=40)
    assert token not in without["token_ids"]


def tokens_of(sides: Sides, text: str) -> list[int]:
    """The tokens of a text. Some tokens that random weights choose are never in the tokenizer's encoding of their
    text."""
    unsplit, pipeline = sides.ask("/tokenize", prompt=text, add_special_tokens=False)
    assert unsplit["tokens"] == pipeline["tokens"]
    return unsplit["tokens"]


@pytest.mark.parametrize(
    ("structured_outputs", "is_right"),
    [
        (
            {"json": {"type": "object", "properties": {"a": {"enum": [1, 22, 333]}}, "required": ["a"]}},
            lambda text: json.loads(text)["a"] in (1, 22, 333),
        ),
        ({"regex": "[a-z]{3}-[0-9]{2}"}, lambda text: len(text) == 6 and text[3] == "-"),
        ({"choice": ["red", "green"]}, lambda text: text in ("red", "green")),
        ({"grammar": 'root ::= "yes" | "no"'}, lambda text: text in ("yes", "no")),
    ],
    ids=["json", "regex", "choice", "grammar"],
)
def test_structured_output(sides: Sides, structured_outputs: dict[str, Any], is_right: Any) -> None:
    [choice] = same_completion(sides, structured_outputs=structured_outputs, max_tokens=40)
    assert is_right(choice["text"]), choice["text"]


@pytest.mark.parametrize("choice", ["named", "required", "hermes"])
def test_tool_calls(sides: Sides, choice: str) -> None:
    """A named tool, or any, is forced by vLLM; the parser's own format is forced by a regex."""
    call = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "[A-Z][a-z]{2,6}"\}\}\n</tool_call>'
    fields = {
        "named": {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        "required": {"tool_choice": "required"},
        "hermes": {"structured_outputs": {"regex": call}, "tool_choice": "auto"},
    }
    answers = sides.ask(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        **{"temperature": 0, "max_tokens": 72, "tools": TOOLS, **fields[choice]},
    )
    for answer in answers:
        for call in answer["choices"][0]["message"].get("tool_calls") or ():
            assert call.pop("id")  # random
    assert answers[0]["choices"] == answers[1]["choices"]
    if choice == "hermes":  # with a named tool, random weights may generate text that is no call
        assert answers[1]["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"


def test_chat_with_logprobs(sides: Sides) -> None:
    answers = sides.ask(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        **{"temperature": 0, "max_tokens": 10, "logprobs": True, "top_logprobs": 4},
    )
    same(answers[0]["choices"], answers[1]["choices"])
    assert len(answers[1]["choices"][0]["logprobs"]["content"]) == 10


def test_streams_of_several_choices(sides: Sides) -> None:
    def streamed(client: httpx.Client) -> dict[int, str]:
        texts: dict[int, str] = {}
        request = body(stream=True, n=3, temperature=0.9, seed=11, max_tokens=20)
        with client.stream("POST", "/v1/completions", json=request) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        return texts

    unsplit, pipeline = streamed(sides.unsplit), streamed(sides.pipeline)
    assert unsplit == pipeline
    whole = same_completion(sides, n=3, temperature=0.9, seed=11, max_tokens=20)
    assert [pipeline[index] for index in range(3)] == [choice["text"] for choice in whole]


def test_a_second_request_uses_the_first_ones_prefix(sides: Sides) -> None:
    text = "In the beginning there was a very long sentence about rings. " * 12

    def cached(salt: str) -> list[int]:
        answers = sides.ask("/v1/completions", **body(prompt=text, cache_salt=salt))
        same(answers[0]["choices"], answers[1]["choices"])
        return [(answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0) for answer in answers]

    assert cached("one") == [0, 0]
    first, second = cached("one")
    assert first == second > 96
    assert cached("another") == [0, 0]
    for client in (sides.unsplit, sides.pipeline):
        assert client.post("/reset_prefix_cache").json() == {"success": True}
    assert cached("one") == [0, 0]


def test_many_requests_of_different_lengths(sides: Sides) -> None:
    """Twelve at once; the next one starts when one is done. Lengths and adapters differ.

    Greedy: vLLM 0.32 on a CPU fails, also unsplit, when a prompt of a seeded request is computed in chunks.
    """
    requests = [
        body(
            prompt=f"{n} " * (1 + 4 * (n % 7)) + PROMPT,
            max_tokens=3 + 5 * (n % 5),
            **({"model": "tuned"} if n % 3 == 0 else {}),
        )
        for n in range(24)
    ]
    answers = [together(client, requests, at_once=12) for client in (sides.unsplit, sides.pipeline)]
    for n, (unsplit, pipeline) in enumerate(zip(*answers, strict=True)):
        assert unsplit == pipeline, n


def test_sequences_that_preempt_each_other(sides: Sides) -> None:
    """12 x (38 + 110) tokens need more than the cache's 1280."""
    requests = [body(prompt=f"Story {n}. {PROMPT} " * 2, max_tokens=110, ignore_eos=True) for n in range(12)]
    before = metric(sides.pipeline, "vllm:num_preemptions_total")
    with ThreadPoolExecutor(2) as pool:
        unsplit, pipeline = pool.map(
            lambda client: together(client, requests, at_once=12), (sides.unsplit, sides.pipeline)
        )
    assert metric(sides.pipeline, "vllm:num_preemptions_total") > before
    assert unsplit == pipeline


def test_clients_that_disconnect_do_not_affect_others(sides: Sides) -> None:
    def disconnect(n: int) -> None:
        request = body(prompt=f"{n} {PROMPT}", stream=True, max_tokens=900, ignore_eos=True)
        with sides.pipeline.stream("POST", "/v1/completions", json=request) as answer:
            lines = answer.iter_lines()
            for _event in range(4):
                next(lines)

    expected = sides.unsplit.post("/v1/completions", json=body(max_tokens=40)).json()["choices"]
    with ThreadPoolExecutor(6) as pool:
        disconnecting = [pool.submit(disconnect, n) for n in range(5)]
        beside = pool.submit(sides.pipeline.post, "/v1/completions", json=body(max_tokens=40))
        same(expected, beside.result().json()["choices"])
        for done in disconnecting:
            done.result()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    deadline = time.monotonic() + SETTLE_S
    while any(metric(sides.pipeline, f"{name}{{") for name in names):
        assert time.monotonic() < deadline, "requests of clients that have disconnected continue"
        time.sleep(0.1)
    same(expected, same_completion(sides, max_tokens=40))


def test_adapters_loaded_at_the_start_and_later(sides: Sides, adapters: list[Path]) -> None:
    [plain] = same_completion(sides)
    [tuned] = same_completion(sides, model="tuned")
    assert plain["token_ids"] != tuned["token_ids"]
    for client in (sides.unsplit, sides.pipeline):
        loaded = client.post("/v1/load_lora_adapter", json={"lora_name": "second", "lora_path": str(adapters[1])})
        assert loaded.status_code == httpx.codes.OK, loaded.text
    [second] = same_completion(sides, model="second")
    assert second["token_ids"] not in (plain["token_ids"], tuned["token_ids"])
    by_stage = sides.pipeline.post("/collective_rpc", json={"method": "list_loras"}).json()["results"]
    assert [sorted(of_stage) for of_stage in by_stage] == [[1, 2], [1, 2]]
    for client in (sides.unsplit, sides.pipeline):
        client.post("/v1/unload_lora_adapter", json={"lora_name": "second"}).raise_for_status()
    assert same_completion(sides) == [plain]
    absent = {"lora_name": "no", "lora_path": "/no/such/adapter"}
    refused = [client.post("/v1/load_lora_adapter", json=absent) for client in (sides.unsplit, sides.pipeline)]
    assert refused[0].status_code == refused[1].status_code != httpx.codes.OK
    same_completion(sides)


def test_prompts_up_to_the_last_position_and_beyond(sides: Sides) -> None:
    filler = [260 + n % 400 for n in range(1024)]
    [choice] = same_completion(sides, prompt=filler[:1016], max_tokens=8, ignore_eos=True)
    assert len(choice["token_ids"]) == 8
    [last] = same_completion(sides, prompt=filler[:1023], max_tokens=1)
    assert last["finish_reason"] == "length"
    refused = [client.post("/v1/completions", json=body(prompt=filler)) for client in (sides.unsplit, sides.pipeline)]
    assert [answer.status_code for answer in refused] == [400, 400]
    assert refused[0].json() == refused[1].json()


def test_calls_to_every_stage(sides: Sides) -> None:
    """Calls that a CPU ignores (sleep) or that reset caches are done on every stage; an unsupported one fails alone."""
    for path in ("/sleep?level=1", "/wake_up", "/reset_mm_cache", "/reset_prefix_cache"):
        answers = [client.post(path) for client in (sides.unsplit, sides.pipeline)]
        assert [answer.status_code for answer in answers] == [200, 200], path
        assert answers[0].text == answers[1].text
    close = {"Connection": "close"}  # the server closes a connection after a failed call, some time later
    refused = sides.pipeline.post("/collective_rpc", json={"method": "get_model"}, headers=close)
    assert "get_model is not supported across stages" in refused.text
    same_completion(sides)


@pytest.fixture(scope="module")
def messages(sides: Sides, records: Path) -> list[Any]:
    """What both engines' schedulers and workers passed to each other in the tests before this one."""
    return recorded(records)


def test_the_codec_preserves_all_that_scheduler_and_workers_pass(messages: list[Any]) -> None:
    from zpptool.engines.vllm import codec

    assert len(messages) > 300
    for number, passed in enumerate(messages):
        assert differences(passed, codec.decode(codec.encode(passed)), f"message {number}") == []
    kinds = {type(passed).__name__ for passed in messages}
    assert kinds >= {"SchedulerOutput", "ModelRunnerOutput", "GrammarOutput"}
    new_requests = [new for passed in messages for new in getattr(passed, "scheduled_new_reqs", ())]
    assert any(new.lora_request for new in new_requests)
    assert any(new.sampling_params.prompt_logprobs for new in new_requests)
    assert any(passed.preempted_req_ids for passed in messages if hasattr(passed, "preempted_req_ids"))
    assert any(output.logprobs for output in messages if hasattr(output, "prompt_logprobs_dict"))


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_corrupt_bytes_of_real_messages_are_decoded_or_refused(messages: list[Any], data: st.DataObject) -> None:
    """No crash, and no error but `ZppError`."""
    from zpptool.engines.vllm import codec
    from zpptool.errors import ZppError

    real = bytearray(codec.encode(messages[data.draw(st.integers(0, len(messages) - 1))]))
    for _change in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(real) - 1))
        match data.draw(st.sampled_from(("change", "cut", "repeat"))):
            case "change":
                real[at] = data.draw(st.integers(0, 255))
            case "cut":
                del real[at : at + data.draw(st.integers(1, 8))]
            case "repeat":
                real[at:at] = real[at : at + data.draw(st.integers(1, 8))]
        if not real:
            return
    with contextlib.suppress(ZppError):
        codec.decode(bytes(real))
