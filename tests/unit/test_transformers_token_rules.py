# SPDX-License-Identifier: Apache-2.0
"""Rules exclude and prefer tokens, and one can always be chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from zpptool.engines.transformers.calls import Step, decode_step, encode_step  # noqa: E402
from zpptool.engines.transformers.sampling import Sampler, SamplingParams  # noqa: E402
from zpptool.engines.transformers.token_rules import TokenRules  # noqa: E402

pytestmark = pytest.mark.torch

LOGITS = torch.tensor([0.0, 3.0, 1.0, 2.9, -1.0])
"""From the likeliest on: 1, 3, 2, 0, 4."""
TOKENS = st.integers(0, 4)


def chosen(rules: TokenRules, count: int, **params: float) -> list[int]:
    sampler = Sampler(SamplingParams(rules=rules, **params))
    return [sampler(LOGITS) for _ in range(count)]


def test_only_allowed_tokens_are_chosen() -> None:
    assert chosen(TokenRules(allowed=(0, 2)), 2) == [2, 2]
    assert set(chosen(TokenRules(allowed=(0, 2)), 50, temperature=2.0)) == {0, 2}


def test_a_bias_prefers_and_excludes() -> None:
    assert chosen(TokenRules(bias={4: 100.0}), 2) == [4, 4]
    assert chosen(TokenRules(bias={1: -100.0}), 2) == [3, 3]


def test_a_banned_sequence_does_not_appear() -> None:
    assert chosen(TokenRules(banned=((1,),)), 2) == [3, 3]
    assert chosen(TokenRules(banned=((1, 1),)), 4) == [1, 3, 1, 3]
    assert chosen(TokenRules(banned=((1, 1, 1),)), 4) == [1, 1, 3, 1]


def test_no_end_token_comes_before_the_least_number_of_tokens() -> None:
    assert chosen(TokenRules(min_tokens=2, end_ids=(1,)), 3) == [3, 3, 1]


def test_rules_leave_the_models_logits_alone() -> None:
    logits = LOGITS.clone()
    Sampler(SamplingParams(rules=TokenRules(bias={0: 5.0}, banned=((1,),))))(logits)
    assert torch.equal(logits, LOGITS)


def test_rules_precede_penalties_and_log_probabilities_stay_the_models_own() -> None:
    params = SamplingParams(rules=TokenRules(allowed=(1, 3)), frequency_penalty=0.5, logprobs=1)
    sampler = Sampler(params)
    choices = [sampler.choose(LOGITS) for _ in range(2)]
    assert [choice.token for choice in choices] == [1, 3]
    assert choices[1].logprobs is not None
    assert choices[1].logprobs.top[0][0] == 1
    assert choices[1].logprobs.chosen == pytest.approx(float(LOGITS.log_softmax(-1)[3]))


@given(
    st.frozensets(TOKENS).map(tuple), st.lists(st.lists(TOKENS, min_size=1, max_size=3).map(tuple)).map(tuple),
    st.integers(0, 3), st.frozensets(TOKENS).map(tuple), st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_a_token_can_be_chosen_under_any_rules(
    allowed: tuple[int, ...], banned: tuple[tuple[int, ...], ...], least: int, ends: tuple[int, ...], temperature: float
) -> None:
    rules = TokenRules(allowed=allowed, banned=banned, min_tokens=least, end_ids=ends)
    tokens = chosen(rules, 5, temperature=temperature)
    assert not allowed or set(tokens) <= set(allowed)


def test_rules_reach_the_last_stage() -> None:
    rules = TokenRules({3: -1.5}, (1, 2), ((4,), (1, 2)), 3, (0,))
    step = Step(1, [5], SamplingParams(rules=rules))
    assert decode_step(encode_step(step)) == step
