# SPDX-License-Identifier: Apache-2.0
"""Chunks of prompts: what they add up to, and how long a pipeline takes for them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zpptool.engines.vllm.core.prefill_share import GRAIN, Prompt, boundary_near, chunk_tokens, tokens_within
from zpptool.engines.vllm.core.step_cost import Cost

NOTHING = Prompt(0, 0)
COSTS = st.builds(Cost, st.floats(1e-5, 1.0), st.floats(1e-6, 1e-2), st.floats(0.0, 1e-6))
PROMPTS = st.lists(st.builds(Prompt, st.integers(1, 5000), st.integers(0, 5000)), min_size=1, max_size=20)


def chunks_of(tokens: int, cost: Cost, stages: int) -> list[int]:
    """The chunks of one prompt that is alone."""
    done, chunks = 0, []
    flight: list[int] = []
    while done < tokens:
        in_flight = Prompt(sum(flight), max(done - sum(flight), 0))
        chunk = min(chunk_tokens([Prompt(tokens - done, done)], in_flight, cost, stages), tokens - done)
        chunks.append(chunk)
        flight = [*flight, chunk][-(stages - 1) :] if stages > 1 else []
        done += chunk
    return chunks


def pipeline_seconds(chunks: list[int], cost: Cost, stages: int) -> float:
    """How long a pipeline of equal stages takes for the chunks of one prompt."""
    free, done = [0.0] * stages, 0
    for chunk in chunks:
        at = 0.0
        for stage in range(stages):
            at = max(at, free[stage]) + cost.seconds(chunk, chunk * (done + chunk / 2))
            free[stage] = at
        done += chunk
    return free[-1]


@given(PROMPTS, COSTS, st.integers(1, 8))
def test_a_chunk_is_positive(prompts: list[Prompt], cost: Cost, steps: int) -> None:
    assert chunk_tokens(prompts, NOTHING, cost, steps) >= 1


@given(PROMPTS, COSTS)
def test_with_one_step_in_flight_nothing_is_divided(prompts: list[Prompt], cost: Cost) -> None:
    assert chunk_tokens(prompts, NOTHING, cost, 1) == sum(prompt.tokens for prompt in prompts)


@given(st.integers(64, 20_000), COSTS, st.integers(2, 4))
def test_chunks_of_a_prompt_take_little_longer_than_the_best_equal_ones(tokens: int, cost: Cost, stages: int) -> None:
    best = min(
        pipeline_seconds([tokens // count + (place < tokens % count) for place in range(count)], cost, stages)
        for count in sorted({max(1, min(tokens, round(1.3**power))) for power in range(25)})
        if tokens // count >= GRAIN
    )
    assert pipeline_seconds(chunks_of(tokens, cost, stages), cost, stages) <= 1.25 * best


def test_chunks_shrink_as_attention_grows() -> None:
    chunks = chunks_of(8000, Cost(0.01, 1e-4, 1e-7), 2)
    assert chunks[0] > 1.5 * chunks[-2]


@given(PROMPTS, COSTS, st.floats(0.0, 100.0))
def test_tokens_take_no_longer_than_they_may(prompts: list[Prompt], cost: Cost, seconds: float) -> None:
    left, spent = tokens_within(seconds, prompts, cost), 0.0
    for prompt in prompts:
        taken = min(left, prompt.tokens)
        left -= taken
        spent += cost.per_token * taken + cost.per_pair * Prompt(taken, prompt.context).pairs
    assert spent <= seconds * 1.001 + 1e-9


def test_a_chunk_ends_with_a_prompt_that_is_near() -> None:
    prompts = [Prompt(32, 0)] * 16
    assert boundary_near(70, prompts) == 64
    assert boundary_near(90, prompts) == 96
    assert boundary_near(500, [Prompt(1000, 0)]) is None
