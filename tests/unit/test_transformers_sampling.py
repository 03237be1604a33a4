# SPDX-License-Identifier: Apache-2.0
"""Tokens are chosen from logits: equal ones with equal seeds, and never an excluded one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from zpptool.engines.transformers.sampling import Sampler, SamplingParams  # noqa: E402
from zpptool.errors import ExitCode, ZppError  # noqa: E402

pytestmark = pytest.mark.torch

LOGITS = torch.tensor([0.0, 3.0, 1.0, 2.9, -1.0])
logits = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40).map(torch.tensor)


def draw(values: torch.Tensor, count: int = 200, **params: Any) -> list[int]:
    sampler = Sampler(SamplingParams(**params))
    return [sampler(values) for _ in range(count)]


@given(logits, st.integers(0, 2**63 - 1))
def test_greedy_takes_the_first_of_the_likeliest_whatever_the_seed(values: torch.Tensor, seed: int) -> None:
    assert draw(values, 1, seed=seed) == [values.tolist().index(max(values.tolist()))]


@given(logits, st.floats(0.1, 5), st.integers(1, 10))
def test_top_k_draws_among_the_k_likeliest(values: torch.Tensor, temperature: float, top_k: int) -> None:
    probabilities = (values / temperature).softmax(
        -1
    )  # logits whose difference is below float32's precision count as equal
    least = probabilities.sort(descending=True).values[:top_k][-1]
    assert all(probabilities[token] >= least for token in draw(values, 20, temperature=temperature, top_k=top_k))


@given(logits, st.floats(0.1, 5), st.floats(0.01, 1))
def test_top_p_draws_no_token_if_the_likelier_ones_suffice(
    values: torch.Tensor, temperature: float, top_p: float
) -> None:
    probabilities = (values / temperature).softmax(-1)
    for token in draw(values, 20, temperature=temperature, top_p=top_p):
        likelier = probabilities[probabilities > probabilities[token]].sum()
        assert likelier < top_p + 1e-5


def test_equal_seeds_draw_equal_tokens_and_different_seeds_do_not() -> None:
    first = draw(LOGITS, temperature=1.0, seed=1)
    assert draw(LOGITS, temperature=1.0, seed=1) == first
    assert draw(LOGITS, temperature=1.0, seed=2) != first


def test_tokens_are_drawn_with_their_probabilities() -> None:
    drawn = draw(LOGITS, 20_000, temperature=1.5)
    shares = torch.bincount(torch.tensor(drawn), minlength=len(LOGITS)) / len(drawn)
    assert torch.allclose(shares, (LOGITS / 1.5).softmax(-1), atol=0.015)


def test_the_choice_is_made_in_float32() -> None:
    halves = LOGITS.bfloat16()
    assert draw(halves, temperature=0.7, seed=5) == draw(halves.float(), temperature=0.7, seed=5)


@given(logits, st.floats(0.1, 5), st.floats(0, 1))
def test_min_p_draws_no_token_that_is_much_less_likely(values: torch.Tensor, temperature: float, min_p: float) -> None:
    probabilities = (values / temperature).softmax(-1)
    for token in draw(values, 20, temperature=temperature, min_p=min_p):
        assert probabilities[token] >= min_p * probabilities.max() * (1 - 1e-5)


def test_a_tiny_temperature_is_greedy() -> None:
    assert draw(LOGITS, 5, temperature=1e-320) == [1] * 5


def test_the_presence_penalty_applies_once_and_the_frequency_penalty_each_time() -> None:
    """The logits are 3.0, 2.9, 1.0, 0.0 and -1.0."""
    assert draw(LOGITS, 4, presence_penalty=0.5) == [1, 3, 1, 1]
    assert draw(LOGITS, 5, frequency_penalty=0.5) == [1, 3, 1, 3, 1]
    assert draw(LOGITS, 6, frequency_penalty=2.0) == [1, 3, 1, 2, 3, 0]


def test_the_repetition_penalty_counts_the_prompt_too() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), prompt=[1, 1])
    assert [sampler(LOGITS) for _ in range(3)] == [3, 1, 1]
    negative = Sampler(SamplingParams(repetition_penalty=2.0), prompt=[0])
    assert negative(torch.tensor([-1.0, -1.5])) == 1


def test_penalties_leave_the_models_logits_alone() -> None:
    logits = LOGITS.clone()
    draw(logits, 5, frequency_penalty=1.0, repetition_penalty=1.5)
    assert torch.equal(logits, LOGITS)


def test_log_probabilities_are_the_models_own() -> None:
    params = SamplingParams(temperature=0.5, frequency_penalty=1.0, seed=3, logprobs=2)
    choices = [sampler.choose(LOGITS) for sampler in [Sampler(params)] for _ in range(5)]
    expected = LOGITS.log_softmax(-1)
    for choice in choices:
        assert choice.logprobs is not None
        assert choice.logprobs.chosen == pytest.approx(float(expected[choice.token]))
        assert choice.logprobs.top == [(1, pytest.approx(float(expected[1]))), (3, pytest.approx(float(expected[3])))]
    assert [choice.token for choice in choices] == draw(LOGITS, 5, temperature=0.5, frequency_penalty=1.0, seed=3)
    assert Sampler(SamplingParams()).choose(LOGITS).logprobs is None


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"logprobs": -1}, "logprobs"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(params: dict[str, float], name: str) -> None:
    with pytest.raises(ZppError, match=name) as caught:
        SamplingParams(**params)
    assert caught.value.exit_code == ExitCode.USAGE
