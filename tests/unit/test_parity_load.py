# SPDX-License-Identifier: Apache-2.0
"""The requests of a load are different, of mixed lengths, and always the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zpptool.parity.load import LONGEST_PROMPT, answer_lengths, load_prompts


def test_prompts_are_different_and_of_mixed_lengths() -> None:
    prompts = load_prompts(range(1000, 1061), 256, 900)
    assert len({tuple(prompt) for prompt in prompts}) == 256
    assert len({len(prompt) for prompt in prompts}) > 100
    assert max(map(len, prompts)) <= LONGEST_PROMPT
    assert prompts == load_prompts(range(1000, 1061), 256, 900)


@given(st.integers(1, 80), st.integers(0, 40), st.integers(-5, 300))
def test_prompts_fit_into_the_room(passage: int, count: int, room: int) -> None:
    prompts = load_prompts(range(passage), count, room)
    assert len(prompts) == count
    assert all(1 <= len(prompt) <= max(room, 1) for prompt in prompts)


@given(st.integers(0, 5), st.integers(0, 70), st.integers(1, 40))
def test_answers_of_a_load_have_mixed_lengths(others: int, load: int, most: int) -> None:
    lengths = answer_lengths(others + load, load, most)
    assert lengths[:others] == [most] * others
    assert len(lengths) == others + load
    assert all(1 <= length <= most for length in lengths)
