# SPDX-License-Identifier: Apache-2.0
"""Text given out piece by piece is the text of all tokens, whole characters only, up to the first stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette")  # its package is the HTTP front's

from zpptool.engines.transformers.api.textstream import INCOMPLETE, TextStream

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=INCOMPLETE), max_size=30)


def decode(token_ids: list[int]) -> str:
    """Every byte is a token: the hardest case for characters."""
    return bytes(token_ids).decode("utf-8", errors="replace")


def decode_dropping_first_space(token_ids: list[int]) -> str:
    """As SentencePiece models do."""
    return decode(token_ids).removeprefix(" ")


def pieces(stream: TextStream, token_ids: bytes) -> list[str]:
    given_out = []
    for token_id in token_ids:
        given_out.append(stream.add(token_id))
        if stream.stopped_by is not None:
            return given_out
    return [*given_out, stream.end()]


@given(TEXTS, TEXTS)
def test_pieces_are_whole_characters_and_make_the_text(prompt: str, text: str) -> None:
    given_out = pieces(TextStream(decode, list(prompt.encode())), text.encode())
    assert "".join(given_out) == text
    assert INCOMPLETE not in "".join(given_out)


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    stream = TextStream(decode, [], stops)
    given_out = "".join(pieces(stream, text.encode()))
    # Text is seen token by token, so the stop string that is complete first wins.
    ends = [end for end in range(len(text) + 1) if any(stop in text[:end] for stop in stops)]
    if ends:
        seen = text[: ends[0]]
        assert given_out == seen[: min(seen.find(stop) for stop in stops if stop in seen)]
        assert stream.stopped_by in stops
    else:
        assert given_out == text
        assert stream.stopped_by is None


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_bytes_that_are_no_text_are_given_out_too(prompt: bytes, answer: bytes) -> None:
    """No byte that is invalid for good is waited for for ever, and nothing is given out twice."""
    given_out = "".join(pieces(TextStream(decode, []), answer))
    assert given_out == decode(list(answer))


def test_the_space_that_begins_an_answer_is_kept() -> None:
    stream = TextStream(decode_dropping_first_space, list(b"is"))
    assert "".join(pieces(stream, b" Paris")) == " Paris"


def test_a_character_that_the_prompt_left_incomplete_is_completed() -> None:
    first, second = "é".encode()
    assert pieces(TextStream(decode, [first]), bytes([second])) == ["é", ""]


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not() -> None:
    stream = TextStream(decode, [], ["\n\n"])
    assert [stream.add(token) for token in b"a\nb"] == ["a", "", "\nb"]
