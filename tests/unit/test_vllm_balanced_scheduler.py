# SPDX-License-Identifier: Apache-2.0
"""Steps in flight share the running sequences evenly, tested with vLLM's own scheduler and made-up tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.v1.core.sched.output import SchedulerOutput  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec  # noqa: E402
from vllm.v1.outputs import ModelRunnerOutput  # noqa: E402
from vllm.v1.request import Request, RequestStatus  # noqa: E402
from vllm.v1.structured_output import StructuredOutputManager  # noqa: E402

from zpptool.engines.vllm.core.balanced_scheduler import BalancedScheduler, tokens_of_a_share, wait_for_each_other  # noqa: E402
from zpptool.engines.vllm.core.batching_policy import BatchingPolicy  # noqa: E402

ANSWER = 12
PROMPT = 5


def make_scheduler(model: Path, in_flight: int, most: int = 64, blocks: int = 1000) -> BalancedScheduler:
    config = VllmConfig(
        model_config=ModelConfig(model=str(model), max_model_len=64, dtype="float32"),
        scheduler_config=SchedulerConfig(
            max_num_seqs=most, max_num_batched_tokens=256, max_model_len=64, is_encoder_decoder=False
        ),
        cache_config=CacheConfig(block_size=32, enable_prefix_caching=False),
        device_config=DeviceConfig("cpu"),
    )
    config.scheduler_config.async_scheduling = False
    config.parallel_config.pipeline_parallel_size = in_flight
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=32, num_kv_heads=1, head_size=8, dtype=torch.float32)
    return BalancedScheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=32,
        hash_block_size=32,
    )


@pytest.fixture(autouse=True)
def always_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are always divided; test_vllm_batching_policy.py tests the choice."""
    monkeypatch.setattr(BatchingPolicy, "shares", lambda _self, _running: True)


def add(scheduler: BalancedScheduler, count: int) -> None:
    for number in range(count):
        params = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
        scheduler.add_request(Request(f"r{number}", [1] * PROMPT, params, None))


def run(scheduler: BalancedScheduler, in_flight: int) -> list[int]:
    """Keep this many steps in flight until all is answered. Returns the number of sequences of each step that had
    any."""
    sizes: list[int] = []
    steps: deque[SchedulerOutput] = deque()
    while scheduler.has_requests() or steps:
        if scheduler.has_requests():
            steps.append(scheduler.schedule())
            sizes += [len(steps[-1].num_scheduled_tokens)] if steps[-1].total_num_scheduled_tokens else []
        if len(steps) == in_flight or not scheduler.has_requests():
            scheduler.update_from_output(steps[0], answer_to(steps.popleft()))
        assert len(sizes) < 10_000
    return sizes


def answer_to(step: SchedulerOutput) -> ModelRunnerOutput:
    ids = list(step.num_scheduled_tokens)
    return ModelRunnerOutput(ids, {name: row for row, name in enumerate(ids)}, [[7] for _ in ids])


@pytest.mark.parametrize(("requests", "in_flight"), [(16, 2), (9, 3), (7, 4), (1, 2)])
def test_each_step_holds_an_even_share(requests: int, in_flight: int, tiny_model: Callable[..., Path]) -> None:
    scheduler = make_scheduler(tiny_model(), in_flight)
    add(scheduler, requests)
    sizes = run(scheduler, in_flight)
    share = -(-requests // in_flight)
    prompts = next(number for number in range(len(sizes)) if sum(sizes[:number]) >= requests)
    assert max(sizes[prompts:]) == share
    assert sum(sizes[prompts:]) >= requests * (ANSWER - 1)


def test_waiting_requests_are_admitted_while_others_run(tiny_model: Callable[..., Path]) -> None:
    """More requests wait than may run: one that ends is replaced at once, and the running ones are still divided."""
    scheduler = make_scheduler(tiny_model(), 2, most=8)
    add(scheduler, 20)
    sizes = run(scheduler, 2)
    assert sum(sizes) == 20 * ANSWER
    assert sorted(sizes)[len(sizes) // 2] == 4


@pytest.mark.parametrize(("requests", "in_flight"), [(4, 2), (9, 3), (1, 2)])
def test_whole_steps_after_divided_ones_hold_all_sequences_again(
    requests: int, in_flight: int, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups in different steps would otherwise stay in different steps, and whole steps could not be measured."""
    choices = iter([True] * 12)
    monkeypatch.setattr(BatchingPolicy, "shares", lambda _self, _running: next(choices, False))
    scheduler = make_scheduler(tiny_model(), in_flight)
    add(scheduler, requests)
    sizes = run(scheduler, in_flight)
    assert sum(sizes) == requests * ANSWER
    assert min(sizes[1:]) <= -(-requests // in_flight)
    assert requests in sizes[len(sizes) // 2 :]  # some sequences are a token behind, and end later


def test_late_requests_are_admitted_at_once_and_then_computed_with_the_others(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchingPolicy, "shares", lambda _self, _running: False)
    scheduler = make_scheduler(tiny_model(), 2)
    add(scheduler, 2)
    first = scheduler.schedule()
    params = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
    scheduler.add_request(Request("late", [1] * PROMPT, params, None))
    late = scheduler.schedule()
    assert set(late.num_scheduled_tokens) == {"late"}
    scheduler.update_from_output(first, answer_to(first))
    held = scheduler.schedule()
    assert not held.num_scheduled_tokens
    scheduler.update_from_output(late, answer_to(late))
    scheduler.update_from_output(held, answer_to(held))
    assert len(scheduler.schedule().num_scheduled_tokens) == 3


def test_while_all_is_in_flight_steps_are_empty_and_not_reported(tiny_model: Callable[..., Path]) -> None:
    scheduler = make_scheduler(tiny_model(), 2)
    add(scheduler, 2)
    first = scheduler.schedule()
    empty = scheduler.schedule()
    assert empty is scheduler.schedule()
    assert empty == SchedulerOutput.make_empty()
    assert scheduler.update_from_output(empty, answer_to(empty)) == {}
    assert scheduler.update_from_output(first, answer_to(first))
    assert len(scheduler.schedule().num_scheduled_tokens) == 1


def test_finished_requests_are_sent_while_all_others_are_in_flight(
    tiny_model: Callable[..., Path],
) -> None:
    scheduler = make_scheduler(tiny_model(), 2)
    add(scheduler, 2)
    first = scheduler.schedule()
    scheduler.finish_requests("r0", RequestStatus.FINISHED_ABORTED)
    assert scheduler.schedule().finished_req_ids == {"r0"}
    assert not scheduler.schedule().finished_req_ids
    scheduler.update_from_output(first, answer_to(first))
    assert list(scheduler.schedule().num_scheduled_tokens) == ["r1"]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_no_sequence_waits_when_none_is_in_flight_or_a_prompt_takes_several_steps(open_tokens: list[int]) -> None:
    if 0 not in open_tokens or max(open_tokens) != 1:
        assert not wait_for_each_other(open_tokens)


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 8))
def test_a_share_is_empty_only_if_there_are_no_open_tokens(open_tokens: list[int], in_flight: int) -> None:
    tokens = tokens_of_a_share(open_tokens, in_flight)
    assert (tokens > 0) == any(open_tokens)
    assert tokens <= sum(open_tokens)
