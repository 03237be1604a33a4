# SPDX-License-Identifier: Apache-2.0
"""What equal tokens after a loss depend on: what is drawn from seeded generators, to which rows an adapter is applied,
and which results of steps in flight still count. Tested with vLLM's own sampler, torch functions and scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
from test_vllm_balanced_scheduler import add, answer_to, make_scheduler  # noqa: E402
from vllm.lora.ops.torch_ops import lora_ops  # noqa: E402
from vllm.lora.punica_wrapper import punica_cpu  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput  # noqa: E402
from vllm.v1.pool.late_interaction_runner import LateInteractionRunner  # noqa: E402
from vllm.v1.request import Request, RequestStatus  # noqa: E402
from vllm.v1.sample.sampler import Sampler  # noqa: E402
from vllm.v1.worker import gpu_model_runner  # noqa: E402
from vllm.v1.worker.gpu_input_batch import InputBatch  # noqa: E402

from zpptool.engines.vllm.calls import LiveRequest  # noqa: E402
from zpptool.engines.vllm.compat.cpu_lora import fix_adapter_products  # noqa: E402
from zpptool.engines.vllm.compat.model_runner import unfinished_prompts_draw_nothing  # noqa: E402
from zpptool.engines.vllm.core.executor import RING_ATTRIBUTE  # noqa: E402
from zpptool.engines.vllm.core.step_calls import LOST  # noqa: E402
from zpptool.engines.vllm.stage import restore  # noqa: E402
from zpptool.errors import ZppError  # noqa: E402

VOCABULARY = 50


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runner_of(generators: dict[int, torch.Generator], discarded: list[bool]) -> SimpleNamespace:
    """The parts of a model runner that are read."""
    batch = SimpleNamespace(generators=generators, num_reqs=len(discarded), vocab_size=VOCABULARY)
    mask = SimpleNamespace(np=np.array([*discarded, True, True]))  # the buffer is longer than the batch
    device = torch.device("cpu")
    return SimpleNamespace(input_batch=batch, discard_request_mask=mask, device=device, sampler=Sampler())


class RequestRegistry(gpu_model_runner.GPUModelRunner):
    """The part of vLLM's runner that keeps requests: its own code over its own batch, without a model."""

    def __init__(self) -> None:
        self.requests, self.num_prompt_logprobs, self.encoder_cache = {}, {}, {}
        self.device, self.sampler = torch.device("cpu"), Sampler()
        self.late_interaction_runner = LateInteractionRunner()
        self.speculative_config = self.execute_model_state = None
        self.is_pooling_model = self.uses_mrope = self.use_async_spec_decode = self.use_async_scheduling = False
        self.input_batch = InputBatch(4, 64, 64, self.device, VOCABULARY, [16], [4])

    def reset_encoder_cache(self) -> None:
        self.encoder_cache.clear()

    def _may_reorder_batch(self, scheduler_output: SchedulerOutput) -> None:
        """No attention backend needs another order here."""


def new_request(name: str, params: SamplingParams) -> NewRequestData:
    return NewRequestData(
        req_id=name, prompt_token_ids=[1, 2, 3], mm_features=[], sampling_params=params, pooling_params=None,
        block_ids=([0],), num_computed_tokens=0, lora_request=None,
    )  # fmt: skip


def test_restoring_may_write_to_what_a_step_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM makes the mask of allowed tokens in the first step that needs it, which runs in inference mode, and later
    writes to it for every request in that row of the batch."""
    monkeypatch.setattr(gpu_model_runner, "get_pp_group", lambda: SimpleNamespace(is_last_rank=True))
    monkeypatch.setattr(restore, "is_last_stage", lambda: True)
    runner = RequestRegistry()
    worker = SimpleNamespace(worker=SimpleNamespace(model_runner=runner))
    seen = new_request("seen", SamplingParams(allowed_token_ids=[4, 5], seed=3))
    step = SchedulerOutput.make_empty()
    step.scheduled_new_reqs, step.num_scheduled_tokens, step.total_num_scheduled_tokens = [seen], {"seen": 3}, 3
    with torch.inference_mode():
        runner._update_states(step)
    assert runner.input_batch.allowed_token_ids_mask_cpu_tensor.is_inference()
    plain = new_request("plain", SamplingParams())
    restore.restore_requests(worker, [(seen, [4, 4]), (plain, [9])])
    assert {name: state.output_token_ids for name, state in runner.requests.items()} == {"seen": [4, 4], "plain": [9]}
    assert runner.input_batch.num_reqs == 0


def test_a_sequence_whose_prompt_is_unfinished_draws_nothing() -> None:
    generators = {row: seeded(row) for row in (0, 1, 3)}
    runner = runner_of(generators, [True, False, True, True])
    worker = SimpleNamespace(worker=SimpleNamespace(model_runner=runner))
    with unfinished_prompts_draw_nothing(worker):
        runner.sampler.topk_topp_sampler(torch.zeros(4, VOCABULARY), generators, None, None)
    assert set(generators) == {0, 1, 3}
    moved = {row for row, generator in generators.items() if not generator.get_state().equal(seeded(row).get_state())}
    assert moved == {1}


def test_generators_come_back_when_sampling_fails() -> None:
    generators = {0: seeded(0)}
    worker = SimpleNamespace(worker=SimpleNamespace(model_runner=runner_of(generators, [True])))
    with pytest.raises(ValueError, match="no"), unfinished_prompts_draw_nothing(worker):
        raise ValueError("no")
    assert list(generators) == [0]


@pytest.mark.parametrize("times", [0, 1, 7])
def test_a_restored_generator_has_the_state_in_which_the_sampler_left_it(times: int) -> None:
    """Whatever else was in the sequence's batches, and whichever row it had."""
    left, restored, logits = seeded(5), seeded(5), torch.randn(3, VOCABULARY, generator=seeded(1))
    runner = runner_of({}, [False])
    for draw in range(times):
        top_p = torch.full((3,), 0.9) if draw % 2 else None
        runner.sampler.topk_topp_sampler(logits.clone(), {draw % 3: left, (draw + 1) % 3: seeded(9)}, None, top_p)
    restore._draw(runner, restored, times)
    assert restored.get_state().equal(left.get_state())


@pytest.mark.parametrize("phase", ["prompt", "token by token"])
def test_a_row_without_an_adapter_gets_none(phase: str) -> None:
    generator = seeded(2)
    first, second = torch.randn(2, 1, 4, 6, generator=generator), torch.randn(2, 1, 5, 4, generator=generator)
    rows, marks = torch.randn(3, 6, generator=generator), torch.tensor([0, -1, 1])
    fix_adapter_products()
    shrunk, out = torch.ones(3, 4), torch.zeros(3, 5)
    if phase == "prompt":
        lengths = torch.ones(3, dtype=torch.long)
        lora_ops.sgmv_shrink(rows, first, shrunk, torch.arange(3), lengths, marks, 3, 1, 3, 0.5)
        lora_ops.sgmv_expand(shrunk, second, out, torch.arange(3), lengths, marks, 3, 1, 3, True)
    else:
        punica_cpu.bgmv_shrink(rows, first, shrunk, marks, 0.5)
        punica_cpu.bgmv_expand(shrunk, second, out, marks, True)
    assert out[1].tolist() == [0.0] * 5
    for row in (0, 2):
        slot = int(marks[row])
        torch.testing.assert_close(out[row], 0.5 * second[slot, 0] @ (first[slot, 0] @ rows[row]))


def test_a_loss_while_a_sequence_waits_for_room(tiny_model: Callable[..., Path]) -> None:
    """It was preempted while its token was in flight, and that token is lost: nothing waits for it, nothing is kept."""
    scheduler = make_scheduler(tiny_model(), 2, blocks=4)  # vLLM uses one itself: the third sequence is preempted
    answer = 20
    for number in range(3):
        scheduler.add_request(Request(f"r{number}", [1] * 30, SamplingParams(max_tokens=answer, ignore_eos=True), None))
    steps, lost = [], False
    for _ in range(400):
        steps.append(scheduler.schedule())
        preempted = [
            request for request in scheduler.requests.values()
            if request.status == RequestStatus.PREEMPTED and request.num_stale_output_tokens
        ]  # fmt: skip
        if preempted and not lost:
            lost = True
            for step in steps:
                scheduler.update_from_output(step, LOST)
            steps = []
        while len(steps) > 1 or (steps and not scheduler.running):
            outputs = scheduler.update_from_output(steps[0], answer_to(steps.pop(0)))
            for output in outputs.get(0).outputs if outputs.get(0) else ():
                assert output.new_token_ids in ([7], [])
        if not scheduler.has_requests():
            break
    assert lost
    assert not scheduler.has_requests()


class LossyRing:
    """Has lost a stage, and takes the live requests once."""

    restored: list[LiveRequest] | None = None

    def wants_restoring(self) -> bool:
        return self.restored is None

    def restore(self, requests: list[LiveRequest]) -> None:
        self.restored = requests


def test_the_scheduler_restores_live_requests_on_the_ring_of_its_configuration(tiny_model: Callable[..., Path]) -> None:
    scheduler, ring = make_scheduler(tiny_model(), 1), LossyRing()
    add(scheduler, 2)
    step = scheduler.schedule()
    scheduler.update_from_output(step, answer_to(step))
    setattr(scheduler.vllm_config, RING_ATTRIBUTE, ring)
    step = scheduler.schedule()
    assert [(request.req_id, tokens) for request, tokens in ring.restored or ()] == [("r0", [7]), ("r1", [7])]
    assert sorted(step.scheduled_cached_reqs.resumed_req_ids) == ["r0", "r1"]


@pytest.mark.parametrize(("index", "expected"), [(-1, 0.0), (0, 2.0)])
def test_the_rows_of_a_prompt_may_share_one_index(index: int, expected: float) -> None:
    fix_adapter_products()
    output = torch.full((3, 2), 7.0)
    punica_cpu.bgmv_shrink(torch.ones(3, 2), torch.ones(1, 1, 2, 2), output, torch.tensor([index]))
    assert output.tolist() == [[expected] * 2] * 3


def test_the_logprobs_of_a_prompt_are_computed_beside_other_requests() -> None:
    """vLLM lists the adapters of the three sampled rows, and computes the logits of a prompt of five tokens."""
    fix_adapter_products()
    output, indices = torch.ones(5, 2), torch.tensor([-1, 0, -1])
    punica_cpu.bgmv_shrink(torch.ones(5, 3), torch.zeros(1, 1, 2, 3), output, indices)
    assert not output.any()
    logits = torch.ones(5, 4)
    punica_cpu.bgmv_expand(output, torch.ones(1, 1, 4, 2), logits, indices, add_inputs=True)
    assert logits.eq(1).all()
    with pytest.raises(ZppError, match="an adapter of the LM head is loaded"):
        punica_cpu.bgmv_shrink(torch.ones(5, 3), torch.ones(1, 1, 2, 3), output, indices)
