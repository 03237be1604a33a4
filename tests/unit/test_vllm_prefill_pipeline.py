# SPDX-License-Identifier: Apache-2.0
"""Prompts fill the pipeline: vLLM's own scheduler and ours on a pipeline whose stages take a known time.

Only the stages are simulated, by a clock; the order of scheduling and waiting is that of vLLM's engine core.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.v1.core.sched.output import SchedulerOutput  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec  # noqa: E402
from vllm.v1.outputs import ModelRunnerOutput  # noqa: E402
from vllm.v1.request import Request  # noqa: E402
from vllm.v1.structured_output import StructuredOutputManager  # noqa: E402

from zpptool.engines.vllm.core.balanced_scheduler import BalancedScheduler  # noqa: E402
from zpptool.engines.vllm.core.batching_policy import BatchingPolicy  # noqa: E402
from zpptool.engines.vllm.core.prefill_pacer import PrefillPacer  # noqa: E402
from zpptool.engines.vllm.core.scheduler import RecoveringScheduler  # noqa: E402
from zpptool.engines.vllm.core.step_cost import Cost  # noqa: E402

BLOCK = 16
LONG = {"max_position_embeddings": 10_000}
STAGE = Cost(0.010, 0.0014, 2e-7)
"""Half of a model of 135 million parameters on one core."""
HEAD_S = 0.003
"""From the last stage's result to the first stage's next step."""


@dataclass
class Pipeline:
    """Stages, and a head that schedules for them.

    Attributes:
        now: the time, in seconds.
        arrived, first, last: when each request came, and had its first and its last token.
        gaps: between the tokens of each request, in seconds.
    """

    scheduler: RecoveringScheduler
    stages: int
    now: float = 0.0
    arrived: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, prompt: int, answer: int) -> None:
        params = SamplingParams(max_tokens=answer, ignore_eos=True)
        self.arrived[name] = self.now
        self.scheduler.add_request(Request(name, list(range(prompt)), params, None))

    def run(self, arrivals: dict[float, Callable[[], None]] | None = None) -> None:
        """Until all is answered; `arrivals` are done when their time has come."""
        later = sorted((arrivals or {}).items())
        free = [self.now] * self.stages
        steps: deque[tuple[SchedulerOutput, list[list[int]], float]] = deque()
        for _ in range(100_000):
            while later and later[0][0] <= self.now:
                later.pop(0)[1]()
            if not self.scheduler.has_requests() and not steps:
                return
            if len(steps) < self.stages and self.scheduler.has_requests():
                step = self.scheduler.schedule()
                computes = step.total_num_scheduled_tokens > 0
                steps.append((step, self._sampled(step), self._computed(step, free) if computes else self.now))
                if computes and len(steps) < self.stages and steps[0][2] > self.now:
                    continue
            step, sampled, done = steps.popleft()
            self.now = max(self.now, done)
            self._answer(step, sampled)
        raise AssertionError("the pipeline does not end")

    def _computed(self, step: SchedulerOutput, free: list[float]) -> float:
        pairs = sum(
            tokens * (self.scheduler.requests[name].num_computed_tokens - tokens / 2)
            for name, tokens in step.num_scheduled_tokens.items()
        )
        at = self.now + HEAD_S
        for stage in range(self.stages):
            at = max(at, free[stage]) + STAGE.seconds(step.total_num_scheduled_tokens, pairs)
            free[stage] = at
        return at

    def _sampled(self, step: SchedulerOutput) -> list[list[int]]:
        """A token for each sequence of a step whose known tokens are all computed with it."""
        requests = [self.scheduler.requests[name] for name in step.num_scheduled_tokens]
        return [[7] if request.num_computed_tokens >= request.num_tokens else [] for request in requests]

    def _answer(self, step: SchedulerOutput, sampled: list[list[int]]) -> None:
        names = list(step.num_scheduled_tokens)
        self.scheduler.update_from_output(
            step, ModelRunnerOutput(names, {name: row for row, name in enumerate(names)}, sampled)
        )
        for name, tokens in zip(names, sampled, strict=True):
            if tokens:
                self.first.setdefault(name, self.now)
                self.gaps.setdefault(name, []).append(self.now - self.last.get(name, self.now))
                self.last[name] = self.now

    def first_token_s(self) -> float:
        """The median time to the first token."""
        return statistics.median(self.first[name] - came for name, came in self.arrived.items())


def pipeline(kind: type[RecoveringScheduler], model: Path, stages: int) -> Pipeline:
    config = VllmConfig(
        model_config=ModelConfig(model=str(model), max_model_len=10_000, dtype="float32", hf_overrides=LONG),
        scheduler_config=SchedulerConfig(
            max_num_seqs=128, max_num_batched_tokens=2048, max_model_len=10_000, is_encoder_decoder=False
        ),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=False),
        device_config=DeviceConfig("cpu"),
    )
    config.scheduler_config.async_scheduling = False
    config.parallel_config.pipeline_parallel_size = stages
    config.cache_config.num_gpu_blocks = 10_000
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
    scheduler = kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=10_000, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        hash_block_size=BLOCK,
    )
    made = Pipeline(scheduler, stages)
    if isinstance(scheduler, BalancedScheduler):
        scheduler._policy = BatchingPolicy(stages, lambda: made.now)
        scheduler._pacer = PrefillPacer(stages, lambda: made.now)
    return made


def answered(kind: type[RecoveringScheduler], model: Path, stages: int, prompts: list[int], answer: int) -> Pipeline:
    """The pipeline after it has answered these prompts three times; the times are those of the last."""
    made = pipeline(kind, model, stages)
    for turn in range(3):
        made.arrived, made.first, made.last = {}, {}, {}
        for number, prompt in enumerate(prompts):
            made.add(f"{turn}-{number}", prompt, answer)
        made.run()
    return made


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("requests", [16, 64])
def test_first_tokens_of_many_prompts_come_sooner(requests: int, stages: int, tiny_model: Callable[..., Path]) -> None:
    ours = answered(BalancedScheduler, tiny_model(), stages, [32] * requests, 32)
    stock = answered(RecoveringScheduler, tiny_model(), stages, [32] * requests, 32)
    assert ours.first_token_s() < 0.75 * stock.first_token_s()
    begun = min(ours.arrived.values()), min(stock.arrived.values())
    assert max(ours.last.values()) - begun[0] < 0.87 * (max(stock.last.values()) - begun[1])


def test_a_long_prompt_alone_is_computed_by_all_stages(tiny_model: Callable[..., Path]) -> None:
    ours = answered(BalancedScheduler, tiny_model(), 2, [8000], 2).first_token_s()
    stock = answered(RecoveringScheduler, tiny_model(), 2, [8000], 2).first_token_s()
    alone = 2 * STAGE.seconds(8000, 8000 * 4000)
    assert ours < 0.9 * stock
    assert ours < 0.65 * alone


def test_running_streams_do_not_stall_while_long_prompts_arrive(tiny_model: Callable[..., Path]) -> None:
    """The longest gap between tokens, near enough: the 99th percentile."""
    longest = {}
    for kind in (BalancedScheduler, RecoveringScheduler):
        made = pipeline(kind, tiny_model(), 2)
        for number in range(8):
            made.add(f"stream-{number}", 32, 400)

        def arrive(number: int, made: Pipeline = made) -> Callable[[], None]:
            return lambda: made.add(f"long-{number}", 4000, 4)

        made.run({2.0 + number: arrive(number) for number in range(8)})
        gaps = sorted(gap for name, own in made.gaps.items() if name.startswith("stream") for gap in own)
        longest[kind] = gaps[int(0.99 * len(gaps))]
    assert longest[BalancedScheduler] < longest[RecoveringScheduler]


def test_prompts_that_cannot_be_cut_are_computed(tiny_model: Callable[..., Path]) -> None:
    made = pipeline(BalancedScheduler, tiny_model(), 2)
    made.scheduler.scheduler_config.enable_chunked_prefill = False
    for number in range(4):
        made.add(f"{number}", 1500, 3)
    made.run()
    assert len(made.first) == 4
