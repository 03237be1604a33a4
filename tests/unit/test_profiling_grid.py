# SPDX-License-Identifier: Apache-2.0
"""The steps that are measured are within the engine's limits, whatever they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zpptool.config.engine_kind import Engine
from zpptool.process.measuring import Limits, Phase
from zpptool.profiling.grid import grid, workspace_tokens

limits = st.builds(
    Limits,
    max_num_batched_tokens=st.integers(1, 1 << 16),
    max_num_seqs=st.integers(1, 4096),
    max_model_len=st.integers(4, 1 << 20),
    device=st.just("cpu"),
)


@given(limits, st.sampled_from(Engine))
def test_no_step_is_more_than_the_engine_takes(given_limits: Limits, engine: Engine) -> None:
    points = grid(given_limits, engine)
    assert {point.phase for point in points} == set(Phase)
    assert len(set(points)) == len(points)
    for point in points:
        assert 1 <= point.sequences <= min(point.tokens, given_limits.max_num_seqs)
        assert point.tokens <= given_limits.max_num_batched_tokens
        assert point.context + point.tokens // point.sequences < given_limits.max_model_len
        assert point.context >= 1 or point.phase is Phase.PREFILL
        assert point.tokens == point.sequences or point.phase is Phase.PREFILL


@given(limits)
def test_the_embedded_engine_does_not_divide_prompts(given_limits: Limits) -> None:
    prompts = [point for point in grid(given_limits, Engine.TRANSFORMERS) if point.phase is Phase.PREFILL]
    assert all(point.context == 0 for point in prompts)


@given(limits)
def test_the_workspace_is_measured_up_to_the_limit(given_limits: Limits) -> None:
    tokens = workspace_tokens(given_limits)
    assert list(tokens) == sorted(set(tokens))
    assert tokens[-1] == given_limits.max_num_batched_tokens
