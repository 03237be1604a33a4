# SPDX-License-Identifier: Apache-2.0
"""The calls that the executor makes for the engine core's steps, on a real ring whose stages only record them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toys
from toys import ring_specs, threads

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]

from vllm.sampling_params import SamplingParams, StructuredOutputsParams  # noqa: E402
from vllm.v1.core.sched.output import CachedRequestData, GrammarOutput, NewRequestData, SchedulerOutput  # noqa: E402
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT  # noqa: E402

from zpptool.engines.vllm import codec  # noqa: E402
from zpptool.engines.vllm.calls import EXECUTE_AND_SAMPLE  # noqa: E402
from zpptool.engines.vllm.core.adapter_calls import AdapterCalls  # noqa: E402
from zpptool.engines.vllm.core.executor import RingExecutor, ring_of  # noqa: E402
from zpptool.engines.vllm.core.rebalance import LayerMove  # noqa: E402
from zpptool.engines.vllm.core.step_calls import StepCalls  # noqa: E402
from zpptool.ring.messages import Call  # noqa: E402

WAIT_S = 30


class RecordingEngine(toys.ToyEngine):
    """Stages that record their calls; an answer is the call's method."""

    calls: list[tuple[int, str, list[Any]]]

    def do(self, call: Call, payload: bytes) -> bytes:
        args, _kwargs = codec.decode(payload)
        self.calls.append((self._spec.stage, call.method, args))
        return codec.encode(call.method)


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RingExecutor]:
    """An executor on a ring of two stages, without the engine core around it."""
    RecordingEngine.calls = []
    monkeypatch.setattr(toys, "ToyEngine", RecordingEngine)
    monkeypatch.setattr(toys.run_stage, "__defaults__", (RecordingEngine,))
    with threads(ring_specs(2, tmp_path)) as ring:
        made = object.__new__(RingExecutor)
        made._survives, made._adapters = False, AdapterCalls()
        made._node, made._spec = ring.head, ring_specs(2, tmp_path)[0]
        made._layer_move = LayerMove(made._spec, SimpleNamespace(), ring.head.facts)
        made._steps = StepCalls(ring.head, merge=True, epoch=lambda: None)
        yield made


def step(*names: str, new: bool = False, guided: bool = False, finished: tuple[str, ...] = ()) -> SchedulerOutput:
    output = SchedulerOutput.make_empty()
    if new:
        grammar = StructuredOutputsParams(choice=["a", "b"]) if guided else None
        params = SamplingParams(structured_outputs=grammar)
        output.scheduled_new_reqs = [NewRequestData(name, [1, 2], [], params, None, ([1],), 0, None) for name in names]
    else:
        count = len(names)
        output.scheduled_cached_reqs = CachedRequestData(
            list(names), set(), [[7]] * count, {name: [1, 2, 7] for name in names}, [None] * count, [2] * count,
            [1] * count,
        )  # fmt: skip
    output.num_scheduled_tokens = dict.fromkeys(names, 1)
    output.total_num_scheduled_tokens = len(names)
    output.finished_req_ids = set(finished)
    return output


def methods_at(stage: int, count: int = 0) -> list[str]:
    """The calls of a stage, once there are `count`: the last stage answers without waiting for the others."""
    deadline = time.monotonic() + WAIT_S
    while len(methods := [method for index, method, _args in RecordingEngine.calls if index == stage]) < count:
        assert time.monotonic() < deadline, methods
        time.sleep(0.01)
    return methods


def test_a_step_is_one_call_of_every_stage(executor: RingExecutor) -> None:
    for _ in range(3):
        forward = executor.execute_model(step("a"), non_block=True)
        tokens = executor.sample_tokens(None, non_block=True)
        assert tokens.result(WAIT_S) == forward.result(WAIT_S) == EXECUTE_AND_SAMPLE
    assert methods_at(0, 3) == methods_at(1) == [EXECUTE_AND_SAMPLE] * 3


def test_all_tokens_so_far_are_not_sent_to_workers_and_stay_in_the_schedulers_copy(executor: RingExecutor) -> None:
    output = step("a", "b")
    executor.execute_model(output, non_block=True)
    executor.sample_tokens(None, non_block=True).result(WAIT_S)
    assert output.scheduled_cached_reqs.all_token_ids == {"a": [1, 2, 7], "b": [1, 2, 7]}
    (sent, _grammar) = RecordingEngine.calls[0][2]
    assert sent.scheduled_cached_reqs.all_token_ids == {}
    assert sent.scheduled_cached_reqs.new_token_ids == [[7], [7]]


def test_an_empty_step_is_not_sent_but_one_that_ends_a_request_is(executor: RingExecutor) -> None:
    assert executor.execute_model(SchedulerOutput.make_empty(), non_block=True).result(0) is EMPTY_MODEL_RUNNER_OUTPUT
    assert RecordingEngine.calls == []
    assert executor.execute_model(step(finished=("a",)), non_block=True).result(WAIT_S) == "execute_model"
    assert methods_at(1) == ["execute_model"]


def test_a_guided_step_is_sent_before_its_grammar_until_the_request_has_ended(executor: RingExecutor) -> None:
    grammar = GrammarOutput(["a"], None)
    executor.execute_model(step("a", new=True, guided=True), non_block=True).result(WAIT_S)
    executor.sample_tokens(grammar, non_block=True).result(WAIT_S)
    executor.execute_model(step("a", "b"), non_block=True).result(WAIT_S)
    executor.sample_tokens(grammar, non_block=True).result(WAIT_S)
    assert methods_at(1) == ["execute_model", "sample_tokens"] * 2
    executor.execute_model(step("b", finished=("a",)), non_block=True)
    executor.sample_tokens(None, non_block=True).result(WAIT_S)
    assert methods_at(1)[4:] == [EXECUTE_AND_SAMPLE]


def test_a_forward_pass_that_is_held_back_is_sent_before_any_other_call(executor: RingExecutor) -> None:
    forward = executor.execute_model(step("a"), non_block=True)
    executor.collective_rpc("list_loras")
    assert forward.result(WAIT_S) == "execute_model"
    assert methods_at(0) == ["execute_model", "list_loras"]


def test_waiting_for_a_forward_pass_that_is_held_back_sends_it(executor: RingExecutor) -> None:
    assert executor.execute_model(step("a"), non_block=True).result(WAIT_S) == "execute_model"
    assert executor.sample_tokens(None) == "sample_tokens"


def test_adapters_are_loaded_again_as_they_were_last() -> None:
    calls = AdapterCalls()
    first, second = SimpleNamespace(lora_int_id=1), SimpleNamespace(lora_int_id=2)
    for method, argument in (
        ("add_lora", first), ("add_lora", second), ("pin_lora", 2), ("pin_lora", 3), ("remove_lora", 1),
        ("execute_model", first),
    ):  # fmt: skip
        calls.record(method, (argument,))
    assert calls.all() == [("add_lora", (second,)), ("pin_lora", (2,))]


def test_an_engine_without_a_ring_has_none() -> None:
    assert ring_of(SimpleNamespace()) is None
