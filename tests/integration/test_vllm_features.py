# SPDX-License-Identifier: Apache-2.0
"""Every feature of stock vLLM's server, asked of the unsplit engine and of two stages: the answers are the same.

In float32, because in bf16 a sequence's tokens depend on what else is in its batch. Steps are small (64 tokens) and so
is the KV cache (40 blocks of 32 tokens), so that prompts come in chunks and sequences push each other out. The weights
are few and random, with a real tokenizer: what is said means nothing, but one wrong bit changes it, and it is quick.
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
    "VLLM_REGEX_COMPILATION_TIMEOUT_S": "60", "VLLM_TOOL_PARSE_REGEX_TIMEOUT_SECONDS": "30",  # of a busy machine
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
    """What both sides run."""
    return speaker


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("adapters")
    names = enumerate(("tuned", "second"))
    return [write_adapter(directory / name, model, seed=seed, strength=0.5) for seed, name in names]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both engine cores keep what passed between scheduler and workers."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def sides(
    model: Path, adapters: list[Path], records: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    arguments = (*ARGUMENTS, "--lora-modules", f"tuned={adapters[0]}")
    environment = {**ENVIRONMENT, "ZPP_TEST_RECORD": str(records)}
    watched = {
        "unsplit": ("--scheduler-cls", "recording.RecordingScheduler"),
        "pipeline": ("--scheduler-cls", "recording.RecordingStagesScheduler"),
    }
    directory = tmp_path_factory.mktemp("features")
    with both_sides(directory, model, RANGES, arguments, environment, **watched) as running:
        yield running


def body(**changes: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "return_token_ids": True, **changes}


def same_completion(sides: Sides, **changes: Any) -> list[dict[str, Any]]:
    """Ask both sides; their choices are equal in every field, logprobs to `LOGPROB_TOLERANCE`."""
    unsplit, pipeline = sides.ask("/v1/completions", **body(**changes))
    same(unsplit["choices"], pipeline["choices"])
    assert unsplit["usage"]["completion_tokens"] == pipeline["usage"]["completion_tokens"] > 0
    return pipeline["choices"]


@pytest.mark.parametrize(
    "wish",
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
def test_ways_of_sampling(sides: Sides, wish: dict[str, Any]) -> None:
    choices = same_completion(sides, **wish)
    assert len(choices) == wish.get("n", 1)
    if "prompt_logprobs" in wish:
        assert len(choices[0]["prompt_logprobs"]) > 128  # more than two chunks


def test_stop_strings_stop_tokens_bad_words_and_min_tokens(sides: Sides) -> None:
    """All about one word that the model says by itself, some tokens after its first."""
    [said] = same_completion(sides, logprobs=0, max_tokens=40)
    place, word = next(
        (place, word)
        for place, word in enumerate(said["logprobs"]["tokens"])
        if place > 2 and len(word) > 2 and word.isascii() and said["text"].count(word.strip()) == 1
        if tokens_of(sides, word) == [said["token_ids"][place]] and len(tokens_of(sides, word.strip())) == 1
    )
    token = said["token_ids"][place]
    [stopped] = same_completion(sides, stop=[word], max_tokens=40)
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", word)
    [kept] = same_completion(sides, stop=[word], include_stop_str_in_output=True, max_tokens=40)
    assert kept["text"].endswith(word)
    [by_token] = same_completion(sides, stop_token_ids=[token], max_tokens=40)
    assert (by_token["stop_reason"], len(by_token["token_ids"])) == (token, place + 1)
    [longer] = same_completion(sides, stop_token_ids=[token], min_tokens=place + 2, max_tokens=40)
    assert len(longer["token_ids"]) >= place + 2
    [without] = same_completion(sides, bad_words=[word.strip()], max_tokens=40)
    assert token not in without["token_ids"]


def tokens_of(sides: Sides, text: str) -> list[int]:
    """How the tokenizer writes a text; of the tokens that random weights choose it would not write all so."""
    told, again = sides.ask("/tokenize", prompt=text, add_special_tokens=False)
    assert told["tokens"] == again["tokens"]
    return told["tokens"]


@pytest.mark.parametrize(
    ("wish", "is_right"),
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
def test_structured_output(sides: Sides, wish: dict[str, Any], is_right: Any) -> None:
    [choice] = same_completion(sides, structured_outputs=wish, max_tokens=40)
    assert is_right(choice["text"]), choice["text"]


@pytest.mark.parametrize("way", ["named", "required", "hermes"])
def test_tool_calls(sides: Sides, way: str) -> None:
    """A named tool, or any, is forced by vLLM; the parser's own format is forced by a regex."""
    call = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "[A-Z][a-z]{2,6}"\}\}\n</tool_call>'
    ways = {
        "named": {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        "required": {"tool_choice": "required"},
        "hermes": {"structured_outputs": {"regex": call}, "tool_choice": "auto"},
    }
    answers = sides.ask(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        **{"temperature": 0, "max_tokens": 72, "tools": TOOLS, **ways[way]},
    )
    for answer in answers:
        for call in answer["choices"][0]["message"].get("tool_calls") or ():
            assert call.pop("id")  # random
    assert answers[0]["choices"] == answers[1]["choices"]
    if way == "hermes":  # of a named tool vLLM lets a model of random weights say what makes no call
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
        wish = body(stream=True, n=3, temperature=0.9, seed=11, max_tokens=20)
        with client.stream("POST", "/v1/completions", json=wish) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        return texts

    unsplit, pipeline = streamed(sides.unsplit), streamed(sides.pipeline)
    assert unsplit == pipeline
    whole = same_completion(sides, n=3, temperature=0.9, seed=11, max_tokens=20)
    assert [pipeline[place] for place in range(3)] == [choice["text"] for choice in whole]


def test_a_second_request_finds_the_first_ones_prefix(sides: Sides) -> None:
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


def test_many_requests_that_come_and_go(sides: Sides) -> None:
    """Twelve at once, each time one is done the next comes; lengths and adapters differ.

    Greedily: vLLM 0.32 on a CPU dies, unsplit too, when a prompt with a seed of its own comes in chunks.
    """
    wishes = [
        body(
            prompt=f"{n} " * (1 + 4 * (n % 7)) + PROMPT,
            max_tokens=3 + 5 * (n % 5),
            **({"model": "tuned"} if n % 3 == 0 else {}),
        )
        for n in range(24)
    ]
    answers = [together(client, wishes, at_once=12) for client in (sides.unsplit, sides.pipeline)]
    for n, (unsplit, pipeline) in enumerate(zip(*answers, strict=True)):
        assert unsplit == pipeline, n


def test_sequences_that_push_each_other_out_of_the_cache(sides: Sides) -> None:
    """12 x (38 + 110) tokens want more than the 1280 that there is room for."""
    wishes = [body(prompt=f"Story {n}. {PROMPT} " * 2, max_tokens=110, ignore_eos=True) for n in range(12)]
    before = metric(sides.pipeline, "vllm:num_preemptions_total")
    with ThreadPoolExecutor(2) as pool:
        unsplit, pipeline = pool.map(
            lambda client: together(client, wishes, at_once=12), (sides.unsplit, sides.pipeline)
        )
    assert metric(sides.pipeline, "vllm:num_preemptions_total") > before
    assert unsplit == pipeline


def test_clients_that_leave_in_the_middle_change_nothing_for_others(sides: Sides) -> None:
    def leave(n: int) -> None:
        wish = body(prompt=f"{n} {PROMPT}", stream=True, max_tokens=900, ignore_eos=True)
        with sides.pipeline.stream("POST", "/v1/completions", json=wish) as answer:
            lines = answer.iter_lines()
            for _event in range(4):
                next(lines)

    expected = sides.unsplit.post("/v1/completions", json=body(max_tokens=40)).json()["choices"]
    with ThreadPoolExecutor(6) as pool:
        left = [pool.submit(leave, n) for n in range(5)]
        beside = pool.submit(sides.pipeline.post, "/v1/completions", json=body(max_tokens=40))
        same(expected, beside.result().json()["choices"])
        for gone in left:
            gone.result()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    deadline = time.monotonic() + SETTLE_S
    while any(metric(sides.pipeline, f"{name}{{") for name in names):
        assert time.monotonic() < deadline, "requests of clients that have left go on"
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
    everywhere = sides.pipeline.post("/collective_rpc", json={"method": "list_loras"}).json()["results"]
    assert [sorted(of_stage) for of_stage in everywhere] == [[1, 2], [1, 2]]
    for client in (sides.unsplit, sides.pipeline):
        client.post("/v1/unload_lora_adapter", json={"lora_name": "second"}).raise_for_status()
    assert same_completion(sides) == [plain]
    absent = {"lora_name": "no", "lora_path": "/no/such/adapter"}
    refused = [client.post("/v1/load_lora_adapter", json=absent) for client in (sides.unsplit, sides.pipeline)]
    assert refused[0].status_code == refused[1].status_code != httpx.codes.OK
    same_completion(sides)


def test_prompts_up_to_the_last_position_and_past_it(sides: Sides) -> None:
    filler = [260 + n % 400 for n in range(1024)]
    [choice] = same_completion(sides, prompt=filler[:1016], max_tokens=8, ignore_eos=True)
    assert len(choice["token_ids"]) == 8
    [last] = same_completion(sides, prompt=filler[:1023], max_tokens=1)
    assert last["finish_reason"] == "length"
    refused = [client.post("/v1/completions", json=body(prompt=filler)) for client in (sides.unsplit, sides.pipeline)]
    assert [answer.status_code for answer in refused] == [400, 400]
    assert refused[0].json() == refused[1].json()


def test_calls_to_every_stage(sides: Sides) -> None:
    """What a CPU ignores (sleep) and what resets caches is done on every stage; what is not carried fails alone."""
    for path in ("/sleep?level=1", "/wake_up", "/reset_mm_cache", "/reset_prefix_cache"):
        answers = [client.post(path) for client in (sides.unsplit, sides.pipeline)]
        assert [answer.status_code for answer in answers] == [200, 200], path
        assert answers[0].text == answers[1].text
    alone = {"Connection": "close"}  # the server ends a connection on which a call has failed, in its own time
    refused = sides.pipeline.post("/collective_rpc", json={"method": "get_model"}, headers=alone)
    assert "get_model is not supported across stages" in refused.text
    same_completion(sides)


@pytest.fixture(scope="module")
def streams(sides: Sides, records: Path) -> list[Any]:
    """What every test before this one had both engines' schedulers and workers say to each other."""
    return recorded(records)


def test_all_that_passed_between_scheduler_and_workers_survives_the_codec(streams: list[Any]) -> None:
    from zpptool.engines.vllm import codec

    assert len(streams) > 300
    for place, passed in enumerate(streams):
        assert differences(passed, codec.decode(codec.encode(passed)), f"message {place}") == []
    seen = {type(passed).__name__ for passed in streams}
    assert seen >= {"SchedulerOutput", "ModelRunnerOutput", "GrammarOutput"}
    news = [new for passed in streams for new in getattr(passed, "scheduled_new_reqs", ())]
    assert any(new.lora_request for new in news)
    assert any(new.sampling_params.prompt_logprobs for new in news)
    assert any(passed.preempted_req_ids for passed in streams if hasattr(passed, "preempted_req_ids"))
    assert any(output.logprobs for output in streams if hasattr(output, "prompt_logprobs_dict"))


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_bytes_of_real_messages_are_a_value_or_a_refusal(streams: list[Any], data: st.DataObject) -> None:
    """No crash, no other error, and nothing built that is much larger than the bytes."""
    from zpptool.engines.vllm import codec
    from zpptool.errors import ZppError

    real = bytearray(codec.encode(streams[data.draw(st.integers(0, len(streams) - 1))]))
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
