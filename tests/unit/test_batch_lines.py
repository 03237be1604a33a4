# SPDX-License-Identifier: Apache-2.0
"""The pure parts of a batch: reading lines, what is derived from them, results, order, and flow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from batches import raw_lines, request
from hypothesis import given, settings
from hypothesis import strategies as st

from zpptool.batch.arrangement import arranged
from zpptool.batch.derivation import body_to_send, derived_hex, seed_of
from zpptool.batch.done_lines import DoneLines
from zpptool.batch.duplicates import DuplicateSearch
from zpptool.batch.flow import EngineLoad, load_in, next_target
from zpptool.batch.identity import refuse_other
from zpptool.batch.journal import Totals
from zpptool.batch.progress import ProgressMeter, duration
from zpptool.batch.request_line import BadLine, RawLine, RequestLine, parse_line
from zpptool.batch.result_line import ERRORS, OUTPUT, Answer, failure_of, result_of
from zpptool.batch.result_order import ResultOrder
from zpptool.errors import ZppError

STARTED = 1_700_000_000


def parsed(entry: object) -> RequestLine | BadLine:
    return parse_line(next(raw_lines([entry])))


def good(entry: object) -> RequestLine:
    line = parsed(entry)
    assert isinstance(line, RequestLine), line
    return line


def test_a_request_is_read() -> None:
    line = good(request(7))
    assert (line.number, line.custom_id, line.url) == (1, "request-7", "/v1/completions")
    assert line.body["prompt"] == "prompt 7"


@pytest.mark.parametrize(
    ("entry", "code", "custom_id", "words"),
    [
        ("{", "invalid_json_line", None, "line 1: it is not JSON"),
        ("[1]", "invalid_json_line", None, "not a JSON object"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "invalid_json_line", None, "not JSON"),
        ({"url": "/v1/completions", "body": {}}, "missing_custom_id", None, "custom_id is missing"),
        ({**request(1), "custom_id": 5}, "missing_custom_id", None, "not a text"),
        ({**request(1), "custom_id": ""}, "missing_custom_id", None, "empty"),
        ({**request(1), "method": "GET"}, "invalid_method", "request-1", 'method is "GET"'),
        ({**request(1), "url": "/v1/files"}, "invalid_url", "request-1", 'url is "/v1/files"'),
        ({**request(1), "url": None}, "invalid_url", "request-1", "url is missing"),
        ({**request(1), "body": []}, "invalid_body", "request-1", "body is missing"),
        (request(1, stream=True), "invalid_body", "request-1", "no streams"),
        ('{"custom_id": "a", "body": ' + "[" * 100_000, "invalid_json_line", None, "not JSON"),
    ],
)
def test_a_line_that_is_no_request_says_why(entry: object, code: str, custom_id: str | None, words: str) -> None:
    line = parsed(entry)
    assert isinstance(line, BadLine)
    assert (line.code, line.custom_id) == (code, custom_id)
    assert words in line.message


def test_a_line_that_is_too_long_is_a_bad_line() -> None:
    line = parse_line(RawLine(3, 10, "a.jsonl, line 3", None))
    assert isinstance(line, BadLine)
    assert line.code == "line_too_long"


@given(st.text(min_size=1), st.text(min_size=1))
def test_seeds_and_ids_follow_from_the_custom_id(one: str, other: str) -> None:
    one, other = (text.encode("utf-8", "replace").decode() for text in (one, other))
    assert 0 <= seed_of(one) < 1 << 53
    assert (seed_of(one) == seed_of(other)) == (one == other)
    assert derived_hex("entry", STARTED, one) == derived_hex("entry", STARTED, one)
    assert derived_hex("entry", STARTED, one) != derived_hex("request", STARTED, one)
    assert derived_hex("entry", STARTED, one) != derived_hex("entry", STARTED + 1, one)


def test_what_is_sent_has_defaults_a_seed_and_a_priority_where_the_line_has_none() -> None:
    line = good(request(1))
    sent = body_to_send(line, {"max_tokens": 99, "top_p": 0.5}, 1)
    assert sent == {**line.body, "top_p": 0.5, "seed": seed_of("request-1"), "priority": 1}
    own = good(request(1, seed=3, priority=-2))
    assert body_to_send(own, {}, 1) == own.body
    assert "seed" not in body_to_send(good(request(1, temperature=0)), {}, None)
    embedding = good({**request(1), "url": "/v1/embeddings", "body": {"input": "a"}})
    assert body_to_send(embedding, {}, 1) == {"input": "a"}


def chat_answer(mark: str, created: int) -> Answer:
    call = {"id": f"chatcmpl-tool-{mark}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "hi", "tool_calls": [call, {**call, "id": f"call_{mark}2"}]}
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    body = {"id": f"chatcmpl-{mark}", "created": created, "choices": [{"message": message}], "usage": usage}
    return Answer(200, body)


def test_equal_answers_are_equal_bytes_whatever_ids_and_times_the_engine_gave() -> None:
    line = good(request(1))
    one, other = (result_of(line, chat_answer(mark, created), STARTED) for mark, created in (("aa", 1), ("bb", 2)))
    assert one == other
    entry = json.loads(one.content)
    assert one.sink == OUTPUT
    assert (one.prompt_tokens, one.answer_tokens) == (5, 7)
    assert entry["custom_id"] == "request-1"
    assert entry["error"] is None
    assert entry["id"].startswith("batch_req_")
    body = entry["response"]["body"]
    assert entry["response"]["status_code"] == 200
    assert body["created"] == STARTED
    assert body["id"].startswith("chatcmpl-")
    first, second = body["choices"][0]["message"]["tool_calls"]
    assert first["id"] != second["id"]


def test_the_fingerprint_of_the_configuration_is_left_out_where_answers_are_invariant() -> None:
    line = good(request(1))
    one, other = (Answer(200, {"choices": [], "system_fingerprint": f"vllm-pp{stages}"}) for stages in (1, 2))
    assert result_of(line, one, STARTED) != result_of(line, other, STARTED)
    assert result_of(line, one, STARTED, invariant=True) == result_of(line, other, STARTED, invariant=True)


def test_a_response_has_derived_ids_in_its_output() -> None:
    def answer(mark: str) -> Answer:
        item = {"id": f"msg_{mark}", "type": "message"}
        usage = {"input_tokens": 2, "output_tokens": 3}
        return Answer(200, {"id": f"resp_{mark}", "created_at": len(mark), "output": [item], "usage": usage})

    line = good({**request(1), "url": "/v1/responses"})
    assert result_of(line, answer("a"), STARTED) == result_of(line, answer("bcd"), STARTED)
    assert result_of(line, answer("a"), STARTED).answer_tokens == 3


def test_a_refused_request_goes_to_the_errors_with_the_answer() -> None:
    result = result_of(good(request(1)), Answer(400, {"error": {"message": "no"}}), STARTED)
    entry = json.loads(result.content)
    assert result.sink == ERRORS
    assert entry["response"]["status_code"] == 400
    assert entry["response"]["body"] == {"error": {"message": "no"}}


def test_a_bad_line_goes_to_the_errors_in_openais_shape() -> None:
    bad = parsed("{")
    assert isinstance(bad, BadLine)
    entry = json.loads(failure_of(bad, bad.code, bad.message, STARTED).content)
    assert set(entry) == {"id", "custom_id", "response", "error"}
    assert (entry["custom_id"], entry["response"], entry["error"]["code"]) == (None, None, "invalid_json_line")


@given(st.lists(st.integers(0, 3000)))
def test_done_lines_are_a_set(numbers: list[int]) -> None:
    done, expected = DoneLines(), set()
    for number in numbers:
        assert done.add(number) == (number not in expected)
        expected.add(number)
    assert done.count == len(expected)
    assert {number for number in range(3100) if number in done} == expected


@settings(max_examples=15)
@given(st.lists(st.integers(0, 60), max_size=80))
def test_the_first_duplicate_is_found(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    search, seen, expected = DuplicateSearch(tmp_path_factory.mktemp("search")), {}, None
    for number, custom_id in enumerate(ids, 1):
        search.add(f"id {custom_id}", number)
        if custom_id in seen and expected is None:
            expected = (seen[custom_id], number)
        seen.setdefault(custom_id, number)
    assert search.first() == expected


def test_duplicates_are_found_among_more_lines_than_the_buffers_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zpptool.batch.duplicates.BUFFER_BYTES", 100)
    search = DuplicateSearch(tmp_path)
    for number in range(5000):
        search.add(f"id {number}", number)
    search.add("id 17", 5000)
    assert len(list(tmp_path.iterdir())) > 200
    assert search.first() == (17, 5000)
    assert list(tmp_path.iterdir()) == []


def test_lines_that_begin_alike_are_together_and_long_ones_first() -> None:
    prompts = ["b" * 300 + "2", "a", "b" * 300 + "1", "c" * 9000, "b" * 300 + "3"]
    lines = [parse_line(line) for line in raw_lines(request(n, prompt=text) for n, text in enumerate(prompts))]
    order = [prompts.index(line.body["prompt"]) for line in arranged([x for x in lines if isinstance(x, RequestLine)])]
    assert order == [3, 2, 0, 4, 1]


@given(st.permutations(range(8)))
def test_the_arrangement_does_not_depend_on_the_order_of_lines(order: list[int]) -> None:
    chats = [{"role": "user", "content": [{"type": "text", "text": "x" * (n % 3)}]} for n in range(8)]
    lines = [good({**request(n), "body": {"messages": [chats[n]], "max_tokens": n % 2}}) for n in range(8)]
    assert sorted(x.custom_id for x in arranged([lines[n] for n in order])) == sorted(x.custom_id for x in lines)


METRICS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 12.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
"""


def test_the_load_is_read_from_the_engines_metrics() -> None:
    assert load_in(METRICS) == EngineLoad(0.25, 12, 3, 2)
    other = METRICS.replace('engine="0"', 'engine="0",replica="b"').replace("0.25", "0.75")
    assert load_in(METRICS + other) == EngineLoad(0.75, 24, 6, 4)
    assert load_in("zpp:prompt_tokens_total 5\n") is None
    assert load_in("vllm:kv_cache_usage_perc nonsense\n") is None


def test_more_lines_are_in_flight_while_the_engine_admits_all_and_fewer_when_some_wait() -> None:
    free = EngineLoad(0.1, 16, 0)
    assert next_target(16, 16, free, 100) == 24
    assert next_target(90, 90, free, 100) == 100
    assert next_target(16, 3, free, 100) == 16, "not all that may be are in flight"
    assert next_target(16, 16, EngineLoad(0.95, 16, 0), 100) == 16
    assert next_target(64, 64, EngineLoad(0.9, 40, 24), 100) < 64
    target = 64
    for _ in range(30):  # an engine that runs at most 40
        load = EngineLoad(0.5, min(target, 40), max(target - 40, 0))
        target = next_target(target, target, load, 1000)
    assert 36 <= target <= 64


def test_another_model_is_refused_by_name_with_both() -> None:
    begun = {"model": "one", "plan": "0-4 4-8", "revision": ""}
    refuse_other("out.jsonl", begun, dict(begun))
    with pytest.raises(ZppError) as caught:
        refuse_other("out.jsonl", begun, {"model": "two", "plan": "0-4 4-8", "revision": "main"})
    assert "another model (one then, two now)" in caught.value.message
    assert "another revision (none then, main now)" in caught.value.message
    assert "plan" not in caught.value.message
    assert caught.value.exit_code == 3


def test_results_are_held_back_for_the_inputs_order() -> None:
    done = DoneLines()
    done.add(2)
    order = ResultOrder(done, ordered=True)
    lines = [parse_line(line) for line in raw_lines(request(n) for n in range(5))]
    results = [failure_of(line, "x", "y", STARTED) for line in lines]
    assert order.add(results[3]) == []
    assert order.add(results[2]) == []
    assert order.add(results[0]) == [results[0], results[2], results[3]]
    assert order.add(results[4]) == [results[4]]
    assert ResultOrder(done, ordered=False).add(results[4]) == [results[4]]


def test_progress_has_rates_and_the_time_that_is_left() -> None:
    now, totals = [0.0], Totals(done=100)
    meter = ProgressMeter(1000, totals, lambda: now[0])
    assert meter.look(4).shown() == "100 of 1000 lines (10%), 0 failed, 4 in flight"
    now[0], totals.done, totals.failed, totals.answer_tokens = 10.0, 190, 10, 500
    shown = meter.look(4).shown()
    assert shown == "200 of 1000 lines (20%), 10 failed, 4 in flight, 50.0 tokens/s, 1 min 20 s left"
    assert [duration(s) for s in (5.4, 100, 7300)] == ["5 s", "1 min 40 s", "2 h 1 min"]
