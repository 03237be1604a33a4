# SPDX-License-Identifier: Apache-2.0
"""Parity: the verdict is `identical` for equal tokens and for nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from zpptool.net.openai_client import Generation
from zpptool.parity.compare import PromptParity, Verdict, first_difference, verdict_of

tokens = st.lists(st.integers(0, 3), max_size=6)


def parity(expected: Sequence[int], got: Sequence[int], text: str = "") -> PromptParity:
    return PromptParity("a prompt", 2, Generation(tuple(expected), text), Generation(tuple(got), "other " + text))


@given(tokens, tokens)
def test_the_first_difference_ends_the_common_prefix(expected: list[int], got: list[int]) -> None:
    index = first_difference(expected, got)
    if index is None:
        assert expected == got
    else:
        assert expected[:index] == got[:index]
        assert expected[index : index + 1] != got[index : index + 1]


@given(tokens, st.lists(st.integers(0, 3), min_size=1))
def test_a_longer_answer_is_different(tokens: list[int], more: list[int]) -> None:
    assert first_difference(tokens, tokens + more) == len(tokens)
    assert first_difference(tokens + more, tokens) == len(tokens)


@given(st.lists(st.tuples(tokens, tokens), max_size=4))
def test_the_verdict_is_identical_only_when_every_prompt_is(pairs: list[tuple[list[int], list[int]]]) -> None:
    verdict = verdict_of([parity(expected, got) for expected, got in pairs])
    if not pairs:
        assert verdict is Verdict.ERROR
    else:
        assert (verdict is Verdict.IDENTICAL) == all(expected == got for expected, got in pairs)
        assert verdict is not Verdict.ERROR


def test_token_ids_are_compared_and_not_texts() -> None:
    assert parity([1, 2], [1, 2], text="same ids, another text").identical
    assert not parity([1, 2], [1, 3]).identical
