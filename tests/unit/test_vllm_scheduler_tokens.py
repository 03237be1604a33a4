# SPDX-License-Identifier: Apache-2.0
"""The tokens that a stage with vLLM's V2 model runner takes from the scheduler's messages, and its warm-up alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import numpy as np  # noqa: E402
import torch  # noqa: E402
from vllm.distributed import parallel_state  # noqa: E402
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput  # noqa: E402

from zpptool.engines.vllm.compat.process_groups import resting_neighbours  # noqa: E402
from zpptool.engines.vllm.compat.scheduler_tokens import SchedulerTokens, sampled_since  # noqa: E402
from zpptool.engines.vllm.compat.v2_runner import settled, take_tokens_from_scheduler  # noqa: E402
from zpptool.errors import ZppError  # noqa: E402


def test_a_sequence_past_its_prompt_has_one_sampled_token() -> None:
    """The first decodes, the second is in the middle of its prompt, the third ends it."""
    assert sampled_since(["a", "b", "c"], [7, 2, 4], [[41], [5, 6], [8]], [6, 9, 5]) == {"a": 41}


def test_what_a_resumed_sequence_was_registered_with_is_not_sampled_again() -> None:
    """It had 10 tokens when it was sent anew, 6 of them its prompt's, and computes them in two steps."""
    assert sampled_since(["a"], [6], [[1, 2, 3, 4]], [10]) == {}
    assert sampled_since(["a"], [10], [[9]], [10]) == {"a": 9}


@pytest.mark.parametrize(
    ("computed", "tokens", "fault"),
    [
        ([7], [[41, 42]], "computes 2 sampled tokens of a"),
        ([7], [[]], "computes 0 sampled tokens of a"),
        ([4], [[1, 2, 3, 4]], "computes 2 sampled tokens of a"),
        ([7], [], "the tokens of 0 of 1 sequences"),
    ],
)
def test_other_tokens_than_one_are_an_error_by_name(computed: list[int], tokens: list[list[int]], fault: str) -> None:
    with pytest.raises(ZppError, match=fault) as refused:
        sampled_since(["a"], computed, tokens, [6])
    assert refused.value.hint


def step_of(tokens: dict[str, tuple[int, list[int]]]) -> SchedulerOutput:
    """A step of known requests: for each, how many of its tokens are computed, and those that the step computes."""
    cached = CachedRequestData.make_empty()
    cached.req_ids = list(tokens)
    cached.num_computed_tokens = [computed for computed, _own in tokens.values()]
    cached.new_token_ids = [own for _computed, own in tokens.values()]
    step = SchedulerOutput.make_empty()
    step.scheduled_cached_reqs = cached
    return step


def handler(*, is_last: bool = False) -> SchedulerTokens:
    requests = SimpleNamespace(
        req_id_to_index={"a": 3, "b": 1}, prefill_len=SimpleNamespace(np=np.array([0, 9, 0, 6], dtype=np.int32))
    )
    return SchedulerTokens(requests, torch.device("cpu"), is_last=is_last)


def test_tokens_are_handed_over_once_in_the_types_of_the_kernel() -> None:
    tokens = handler()
    tokens.expect(step_of({"b": (2, [5, 6]), "a": (6, [41])}))
    outputs = tokens.get_prev_sampled_outputs(torch.zeros(1))
    assert outputs is not None
    assert {name: (value.tolist(), value.dtype) for name, value in outputs.items()} == {
        "sampled_tokens": ([[41]], torch.int64),
        "num_sampled": ([1], torch.int32),
        "num_rejected": ([0], torch.int32),
        "idx_mapping": ([3], torch.int64),
    }
    assert tokens.get_prev_sampled_outputs() is None


def test_the_last_stage_needs_none_and_a_warm_up_has_none() -> None:
    last = handler(is_last=True)
    last.expect(step_of({"a": (6, [41])}))
    assert last.get_prev_sampled_outputs() is None
    assert handler().get_prev_sampled_outputs() is None
    dropped = handler()
    dropped.expect(step_of({"a": (6, [41])}))
    dropped.expect(None)
    assert dropped.get_prev_sampled_outputs() is None


def worker_with(runner: object) -> SimpleNamespace:
    return SimpleNamespace(worker=SimpleNamespace(model_runner=runner))


def test_a_runner_that_drafts_or_is_another_one_is_refused() -> None:
    with pytest.raises(ZppError, match="drafts tokens"):
        take_tokens_from_scheduler(worker_with(SimpleNamespace(req_states=None, num_speculative_steps=4)))
    with pytest.raises(ZppError, match="is not the V2 model runner"):
        take_tokens_from_scheduler(worker_with(SimpleNamespace(input_batch=None)))


def test_an_output_that_is_still_copied_is_waited_for() -> None:
    assert settled(SimpleNamespace(get_output=lambda: "tokens")) == "tokens"
    assert settled(None) is None


def test_a_stage_that_warms_up_neither_sends_nor_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    group = SimpleNamespace(is_first_rank=False, rank_in_group=1)
    monkeypatch.setattr(parallel_state, "_PP", group)
    buffers = {"hidden_states": torch.zeros(4, 2)}
    with resting_neighbours(lambda: buffers):
        alone = parallel_state.get_pp_group()
        assert (alone.is_first_rank, alone.rank_in_group) == (False, 1)
        assert alone.isend_tensor_dict({"hidden_states": torch.ones(1)}, all_gather_group=None)[1:] == []
        received, handles, postprocess = alone.irecv_tensor_dict(all_gather_group=None)
        assert (received, handles, postprocess) == (buffers, [], [])
    assert parallel_state.get_pp_group() is group
