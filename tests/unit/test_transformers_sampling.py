# SPDX-License-Identifier: Apache-2.0
"""Tokens are chosen from logits: equal ones with equal seeds, and never an excluded one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from zpptool.engines.transformers.sampling import Sampler, SamplingParams  # noqa: E402
from zpptool.errors import ExitCode, ZppError  # noqa: E402

pytestmark = pytest.mark.torch

LOGITS = torch.tensor([0.0, 3.0, 1.0, 2.9, -1.0])
logits = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40).map(torch.tensor)


def draw(values: torch.Tensor, count: int = 200, **params: float) -> list[int]:
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


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(params: dict[str, float], name: str) -> None:
    with pytest.raises(ZppError, match=name) as caught:
        SamplingParams(**params)
    assert caught.value.exit_code == ExitCode.USAGE
