# SPDX-License-Identifier: Apache-2.0
"""Planned changes over their socket: what is no request changes nothing, one change at a time, nobody else's file."""

from __future__ import annotations

import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from zpptool.admin import change_types as ch
from zpptool.admin.change_server import ChangeServer
from zpptool.errors import ExitCode, ZppError, stage_error
from zpptool.partition import Partition
from zpptool.ring.head.view import RingSnapshot
from zpptool.ring.messages import Leave, Seat, StageFacts

pytestmark = pytest.mark.timeout(30)


class Paper:
    """A ring on paper, whose stages come again as soon as they are let.

    Attributes:
        asked: who was asked to leave, and why.
    """

    def __init__(self) -> None:
        self.may_recover = True
        self.seats = [Seat(stage, "here", 10 + stage) for stage in range(3)]
        self.epoch = 1
        self.fault: ZppError | None = None
        self.asked: list[tuple[int, str]] = []
        self.knocked = 0
        self.movable = True
        self.layers = [(0, 2), (2, 4), (4, 6)]
        self.let = threading.Event()
        self.let.set()

    def look(self) -> RingSnapshot:
        return RingSnapshot(tuple(self.seats), self.epoch if self.let.is_set() else None, self.fault)

    plan_digest = "d"

    def knocks(self, stage: int) -> int:
        return self.knocked

    def facts(self) -> tuple[StageFacts, ...]:
        return tuple(
            StageFacts(seat.stage, seat.host, seat.pid, 3, layers, {}, movable=self.movable)
            for seat, layers in zip(self.seats, self.layers, strict=True)
        )

    def prepare_partition(self, partition: Partition) -> tuple[int, ...]:
        self.prepared = partition
        return tuple(stage for stage, own in enumerate(partition) if (own.start, own.end) != self.layers[stage])

    def ask_to_leave(self, leave: Leave) -> None:
        self.moved_to = leave.moved_to
        self.layers = list(leave.partition) or self.layers
        for seat in leave.seats:
            self.asked.append((seat.stage, leave.why))
            self.seats[seat.stage] = Seat(seat.stage, "here", seat.pid + 100)
        self.epoch += 1


@pytest.fixture
def ring() -> Paper:
    return Paper()


@pytest.fixture
def path(tmp_path: Path, ring: Paper) -> Iterator[Path]:
    changer = ChangeServer(tmp_path / "head.change", ring)
    yield tmp_path / "head.change"
    changer.close()
    assert not (tmp_path / "head.change").exists()


def said(path: Path, line: bytes) -> ch.Answer:
    """The first answer to these bytes."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(path))
        asking.sendall(line)
        asking.shutdown(socket.SHUT_WR)
        with asking.makefile("rb") as lines:
            return ch.read_answer(lines.readline())


def moving(**fields: object) -> ch.Replace:
    return msgspec.structs.replace(ch.Replace("me", 1, "tcp://10.0.0.3:15551", "d", 20.0), **fields)


def test_a_rollout_tells_of_every_stage(path: Path, ring: Paper) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    *told, last = ch.ask(path, ch.Rollout("me"))
    assert [(answer.stage, answer.pid) for answer in told if answer.stage is not None] == [(0, 110), (1, 111), (2, 112)]
    assert last == ch.Outcome("every stage has come again")
    assert ring.asked == [(0, "me"), (1, "me"), (2, "me")]


def test_a_second_change_is_refused_by_name_and_a_third_is_taken_later(path: Path, ring: Paper) -> None:
    first = ch.ask(path, moving(by="the first"))
    assert isinstance(next(first), ch.Accepted)
    (refused,) = ch.ask(path, ch.Rollout("the second"))
    assert refused == ch.Outcome(
        "another planned change is under way: the first", ExitCode.FAILURE, "One at a time: ask again when it is over."
    )
    with pytest.raises(ZppError, match="under way"):
        refused.raise_fault()
    ring.knocked += 1
    assert list(first)[-1] == ch.Outcome("stage 1 has moved to tcp://10.0.0.3:15551")
    (*_, outcome) = ch.ask(path, ch.Rollout("the third"))
    assert isinstance(outcome, ch.Outcome)
    assert outcome.exit_code == 0


def test_one_who_has_gone_wants_no_more(path: Path, ring: Paper) -> None:
    ring.let.clear()
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(path))
        asking.sendall(ch.encode_line(ch.Rollout("gone")))
    refused = ch.Outcome("another planned change is under way: gone")
    end = time.monotonic() + 10
    while (outcome := said(path, ch.encode_line(ch.Rollout("")))).text == refused.text:
        ring.let.set()
        assert time.monotonic() < end
    assert isinstance(outcome, ch.Progress | ch.Outcome)
    assert "gone" not in [by for _, by in ring.asked]


def test_a_stage_moves_when_another_one_has_asked_for_its_place(path: Path, ring: Paper) -> None:
    answers = ch.ask(path, moving())
    accepted = next(answers)
    assert isinstance(accepted, ch.Accepted)
    assert ring.asked == []
    ring.knocked += 1
    *_, came, outcome = answers
    assert isinstance(came, ch.Progress)
    assert (came.stage, came.pid) == (1, 111)
    assert outcome == ch.Outcome("stage 1 has moved to tcp://10.0.0.3:15551")
    assert ring.asked == [(1, "me")]
    assert ring.moved_to == "tcp://10.0.0.3:15551"


def test_where_no_other_one_asks_nothing_is_touched(path: Path, ring: Paper) -> None:
    accepted, outcome = ch.ask(path, moving(wait_s=0.2))
    assert isinstance(accepted, ch.Accepted)
    assert isinstance(outcome, ch.Outcome)
    assert (outcome.exit_code, ring.asked) == (ExitCode.STAGE, [])
    assert "no other stage 1 has asked for the place in 0.2 s" in outcome.text


def test_a_count_that_begins_anew_is_no_knock(path: Path, ring: Paper) -> None:
    """The stage before may be another process by then."""
    ring.knocked = 7
    answers = ch.ask(path, moving(wait_s=0.5))
    next(answers)
    ring.knocked = 0
    (outcome,) = answers
    assert ring.asked == []
    assert outcome.exit_code == ExitCode.STAGE


@pytest.mark.parametrize(
    ("fields", "code", "told"),
    [
        ({"stage": 0}, ExitCode.USAGE, "stage 0 of 3 cannot be moved"),
        ({"stage": 3}, ExitCode.USAGE, "stage 3 of 3 cannot be moved"),
        ({"plan_digest": "e"}, ExitCode.INVALID, "with the digest d, and another one is named"),
    ],
    ids=str,
)
def test_what_cannot_move_is_refused_before_anything_is_touched(
    path: Path, ring: Paper, fields: dict[str, object], code: ExitCode, told: str
) -> None:
    (outcome,) = ch.ask(path, moving(**fields))
    assert isinstance(outcome, ch.Outcome)
    assert outcome.exit_code == code
    assert told in outcome.text
    assert ring.asked == []


def test_layers_move_in_one_turn_of_the_stages_that_they_concern(path: Path, ring: Paper) -> None:
    accepted, *told, outcome = ch.ask(path, ch.Rebalance("me", ("0-1", "1-4", "4-6"), "d"))
    assert accepted == ch.Accepted("2 of 3 stages come again with other layers")
    assert [answer.stage for answer in told if isinstance(answer, ch.Progress) and answer.stage is not None] == [0, 1]
    assert outcome == ch.Outcome("the layers are now 0-1 1-4 4-6")
    assert ring.asked == [(0, "me"), (1, "me")]
    assert ring.layers == [(0, 1), (1, 4), (4, 6)]


@pytest.mark.parametrize(
    ("ranges", "code", "told"),
    [
        ("0-3 3-6", ExitCode.USAGE, "2 ranges are given for 3 stages"),
        ("0-1 1-2 2-3 3-6", ExitCode.USAGE, "the number of stages cannot change"),
        ("0-2 2-4 4-6", ExitCode.INVALID, "already"),
        ("0-2 2-5 4-6", ExitCode.INVALID, "overlap"),
        ("0-2 3-4 5-7", ExitCode.INVALID, ";"),
        ("0-2 2-4 a", ExitCode.INVALID, "a"),
    ],
)
def test_ranges_that_cannot_be_are_refused_before_anything_is_touched(
    path: Path, ring: Paper, ranges: str, code: ExitCode, told: str
) -> None:
    (outcome,) = ch.ask(path, ch.Rebalance("me", tuple(ranges.split()), "d"))
    assert isinstance(outcome, ch.Outcome)
    assert outcome.exit_code == code
    assert told in outcome.text
    assert ring.asked == []


def test_stages_of_directories_of_their_own_keep_their_layers(path: Path, ring: Paper) -> None:
    ring.movable = False
    (outcome,) = ch.ask(path, ch.Rebalance("me", ("0-1", "1-4", "4-6"), "d"))
    assert isinstance(outcome, ch.Outcome)
    assert "stage 0, 1 was started from its own directory" in outcome.text
    assert ring.asked == []


@pytest.mark.parametrize(("own", "named", "told"), [("d", "", "--plan"), ("", "e", "Leave out --plan")])
def test_a_plan_that_is_not_the_pipelines_is_refused(path: Path, ring: Paper, own: str, named: str, told: str) -> None:
    ring.plan_digest = own
    (outcome,) = ch.ask(path, ch.Rebalance("me", ("0-1", "1-4", "4-6"), named))
    assert isinstance(outcome, ch.Outcome)
    assert told in outcome.hint
    assert ring.asked == []


def test_a_ring_that_does_not_recover_is_left_alone(path: Path, ring: Paper) -> None:
    ring.may_recover = False
    (outcome,) = ch.ask(path, ch.Rollout("me"))
    assert outcome.exit_code == ExitCode.USAGE
    assert "--recovery-deadline 0" in outcome.text
    assert "start it anew" in outcome.hint
    assert ring.asked == []


def test_a_ring_that_ends_ends_the_change(path: Path, ring: Paper) -> None:
    ring.fault = stage_error("stage 1 has not come back in 2 s")
    (outcome,) = ch.ask(path, ch.Rollout("me"))
    assert outcome.exit_code == ExitCode.STAGE
    assert "stage 1 has not come back in 2 s" in outcome.text


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"rollout\n",
        b"{}\n",
        b'{"type":"rollout"}\n',
        b'{"type":"rollout","by":1}\n',
        b'{"type":"rollout","by":"a","more":1}\n',
        b'{"type":"rollout","by":"\x1b[2J"}\n',
        b'{"type":"rollout","by":"' + b"a" * 300 + b'"}\n',
        b"[" * 10_000 + b"\n",
        b"\xff\xfe\n",
        b"a" * (ch.MOST_BYTES + 10),
    ],
)
def test_what_is_no_request_changes_nothing(path: Path, ring: Paper, line: bytes) -> None:
    answer = said(path, line)
    assert isinstance(answer, ch.Outcome)
    assert answer.exit_code == ExitCode.USAGE
    assert ring.asked == []


def test_where_nobody_listens_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(ZppError, match="no head takes a planned change") as told:
        next(ch.ask(tmp_path / "none", ch.Rollout("me")))
    assert told.value.exit_code is ExitCode.ADDRESS


def test_a_head_that_goes_in_the_middle_is_said_to_have_gone(tmp_path: Path) -> None:
    with pytest.raises(ZppError, match="gone before the change was over"):
        ch.read_answer(b"")
    with pytest.raises(ZppError, match="cannot be read"):
        ch.read_answer(b"what?\n")


def test_whose_is_one_line_of_plain_text() -> None:
    told = ch.whose("zpptool rollout")
    assert msgspec.convert({"type": "rollout", "by": told}, ch.Rollout).by == told
