# SPDX-License-Identifier: Apache-2.0
"""The emitted pieces together are the text of all tokens, in whole characters, up to the first stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette")  # the package needs it

from zpptool.engines.transformers.api.textstream import INCOMPLETE, TextStream

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=INCOMPLETE), max_size=30)


def decode(token_ids: list[int]) -> str:
    """Every byte is a token: the hardest case for characters."""
    return bytes(token_ids).decode("utf-8", errors="replace")


def decode_dropping_first_space(token_ids: list[int]) -> str:
    """As SentencePiece models do."""
    return decode(token_ids).removeprefix(" ")


def pieces(stream: TextStream, token_ids: bytes) -> list[str]:
    emitted = []
    for token_id in token_ids:
        emitted.append(stream.add(token_id))
        if stream.stopped_by is not None:
            return emitted
    return [*emitted, stream.end()]


@given(TEXTS, TEXTS)
def test_pieces_are_whole_characters_and_add_up_to_the_text(prompt: str, text: str) -> None:
    emitted = pieces(TextStream(decode, list(prompt.encode())), text.encode())
    assert "".join(emitted) == text
    assert INCOMPLETE not in "".join(emitted)


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    stream = TextStream(decode, [], stops)
    emitted = "".join(pieces(stream, text.encode()))
    # Text is processed token by token, so the stop string that is complete first counts.
    ends = [end for end in range(len(text) + 1) if any(stop in text[:end] for stop in stops)]
    if ends:
        seen = text[: ends[0]]
        assert emitted == seen[: min(seen.find(stop) for stop in stops if stop in seen)]
        assert stream.stopped_by in stops
    else:
        assert emitted == text
        assert stream.stopped_by is None


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_bytes_that_are_no_text_are_emitted_too(prompt: bytes, answer: bytes) -> None:
    """An invalid byte is not held back forever, and nothing is emitted twice."""
    emitted = "".join(pieces(TextStream(decode, []), answer))
    assert emitted == decode(list(answer))


def test_the_space_that_begins_an_answer_is_kept() -> None:
    stream = TextStream(decode_dropping_first_space, list(b"is"))
    assert "".join(pieces(stream, b" Paris")) == " Paris"


def test_a_character_that_the_prompt_left_incomplete_is_completed() -> None:
    first, second = "é".encode()
    assert pieces(TextStream(decode, [first]), bytes([second])) == ["é", ""]


def test_the_possible_beginning_of_a_stop_string_is_held_back() -> None:
    stream = TextStream(decode, [], ["\n\n"])
    assert [stream.add(token) for token in b"a\nb"] == ["a", "", "\nb"]
