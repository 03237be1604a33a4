# SPDX-License-Identifier: Apache-2.0
"""A measuring process and its parent: every question is answered, an error by name, and an end is noticed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zpptool.errors import ExitCode, ZppError, invalid_error
from zpptool.planner.device_profile import CacheCosts
from zpptool.process.measuring import (
    Cache,
    CacheReport,
    Limits,
    Load,
    Loaded,
    MeasuringProcess,
    Phase,
    Point,
    Question,
    ReadRate,
    Time,
    Times,
    Workspace,
    WorkspaceBytes,
    answer_questions,
)

POINT = Point(Phase.DECODE, 2, 2, 8)


class Counted:
    """A part that answers with what it was asked."""

    def limits(self) -> Limits:
        return Limits(64, 4, 128, "toy")

    def load(self, points: tuple[Point, ...]) -> Loaded:
        return Loaded(len(points), 0.5)

    def time(self, point: Point, repeats: int) -> Times:
        return Times((float(point.tokens),) * repeats)

    def workspace(self, tokens: int) -> int:
        if tokens > 64:
            raise invalid_error(f"{tokens} tokens are too many", "Ask for fewer.")
        return tokens

    def read_rate(self) -> float:
        raise RuntimeError("the disk is gone")

    def cache(self, layer_types: tuple[str, ...], ranks: tuple[int, ...]) -> CacheCosts:
        return CacheCosts(bytes_per_token=dict.fromkeys(layer_types, len(ranks)))


@contextmanager
def pair(tmp_path: Path) -> Iterator[tuple[MeasuringProcess, threading.Thread]]:
    process = MeasuringProcess("layers 1-2", tmp_path / "socket")
    child = threading.Thread(target=answer_questions, args=(tmp_path / "socket", Counted()))
    child.start()
    try:
        assert process.connected(5)
        yield process, child
    finally:
        process.close()
        child.join(5)
        assert not child.is_alive()


def asked(process: MeasuringProcess, question: Question) -> object:
    process.ask(question)
    return process.answer(5)


def test_questions_are_answered_in_turn(tmp_path: Path) -> None:
    with pair(tmp_path) as (process, _child):
        assert process.answer(5) == Limits(64, 4, 128, "toy")
        assert asked(process, Load((POINT, POINT))) == Loaded(2, 0.5)
        assert asked(process, Time(POINT, 3)) == Times((2.0, 2.0, 2.0))
        assert asked(process, Workspace(7)) == WorkspaceBytes(7)
        costs = CacheCosts(bytes_per_token={"attention": 2, "mamba": 2})
        assert asked(process, Cache(("attention", "mamba"), (1, 2))) == CacheReport(costs)


def test_an_error_has_the_name_of_the_part_and_the_next_question_is_answered(tmp_path: Path) -> None:
    with pair(tmp_path) as (process, _child):
        process.answer(5)
        with pytest.raises(ZppError, match="layers 1-2: 65 tokens are too many") as refused:
            asked(process, Workspace(65))
        assert (refused.value.exit_code, refused.value.hint) == (ExitCode.INVALID, "Ask for fewer.")
        with pytest.raises(ZppError, match="the disk is gone"):
            asked(process, ReadRate())
        assert asked(process, Workspace(1)) == WorkspaceBytes(1)


def test_no_answer_yet_is_no_error_and_an_end_is_one(tmp_path: Path) -> None:
    process = MeasuringProcess("layers 1-2", tmp_path / "socket")
    assert not process.connected(0.01)
    ended = threading.Event()

    class Waiting(Counted):
        def workspace(self, tokens: int) -> int:
            ended.wait(5)
            raise SystemExit

    def body() -> None:
        try:
            answer_questions(tmp_path / "socket", Waiting())
        except SystemExit:
            return

    child = threading.Thread(target=body)
    child.start()
    assert process.connected(5)
    process.answer(5)
    process.ask(Workspace(1))
    assert process.answer(0.01) is None
    ended.set()
    with pytest.raises(EOFError):
        process.answer(5)
    process.close()
    child.join(5)
