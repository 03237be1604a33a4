# SPDX-License-Identifier: Apache-2.0
"""Planned changes over their socket: malformed requests change nothing, and one change runs at a time."""

from __future__ import annotations

import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from zpptool.admin.change_server import ChangeServer
from zpptool.admin.change_types import (
    MOST_BYTES,
    Accepted,
    Answer,
    Outcome,
    Progress,
    Rebalance,
    Replace,
    Rollout,
    ask,
    encode_line,
    read_answer,
    whose,
)
from zpptool.errors import ExitCode, ZppError, stage_error
from zpptool.partition import Partition
from zpptool.ring.head.view import RingSnapshot
from zpptool.ring.messages import Leave, Seat, StageFacts

pytestmark = pytest.mark.timeout(30)


class FakeRing:
    """A ring without processes, whose stages have restarted as soon as they are asked to.

    Attributes:
        asked: the stages that were asked to leave, and why.
        settled: set while the ring is whole and idle.
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
        self.settled = threading.Event()
        self.settled.set()

    def look(self) -> RingSnapshot:
        return RingSnapshot(tuple(self.seats), self.epoch if self.settled.is_set() else None, self.fault)

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
def ring() -> FakeRing:
    return FakeRing()


@pytest.fixture
def path(tmp_path: Path, ring: FakeRing) -> Iterator[Path]:
    server = ChangeServer(tmp_path / "head.change", ring)
    yield tmp_path / "head.change"
    server.close()
    assert not (tmp_path / "head.change").exists()


def first_answer(path: Path, line: bytes) -> Answer:
    """The first answer to these bytes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as lines:
            return read_answer(lines.readline())


def moving(**fields: object) -> Replace:
    return msgspec.structs.replace(Replace("me", 1, "tcp://10.0.0.3:15551", "d", 20.0), **fields)


def test_a_rollout_reports_every_stage(path: Path, ring: FakeRing) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    *progress, last = ask(path, Rollout("me"))
    assert [(answer.stage, answer.pid) for answer in progress if answer.stage is not None] == [
        (0, 110),
        (1, 111),
        (2, 112),
    ]
    assert last == Outcome("every stage has come again")
    assert ring.asked == [(0, "me"), (1, "me"), (2, "me")]


def test_a_second_change_is_refused_by_name_and_a_third_is_accepted_later(path: Path, ring: FakeRing) -> None:
    first = ask(path, moving(by="the first"))
    assert isinstance(next(first), Accepted)
    (refused,) = ask(path, Rollout("the second"))
    assert refused == Outcome(
        "another planned change is under way: the first", ExitCode.FAILURE, "One at a time: ask again when it is over."
    )
    with pytest.raises(ZppError, match="under way"):
        refused.raise_fault()
    ring.knocked += 1
    assert list(first)[-1] == Outcome("stage 1 has moved to tcp://10.0.0.3:15551")
    (*_, outcome) = ask(path, Rollout("the third"))
    assert isinstance(outcome, Outcome)
    assert outcome.exit_code == 0


def test_nothing_is_begun_after_the_client_has_disconnected(path: Path, ring: FakeRing) -> None:
    ring.settled.clear()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(encode_line(Rollout("gone")))
    refused = Outcome("another planned change is under way: gone")
    end = time.monotonic() + 10
    while (outcome := first_answer(path, encode_line(Rollout("")))).text == refused.text:
        ring.settled.set()
        assert time.monotonic() < end
    assert isinstance(outcome, Progress | Outcome)
    assert "gone" not in [by for _, by in ring.asked]


def test_a_stage_moves_when_another_process_has_asked_for_its_place(path: Path, ring: FakeRing) -> None:
    answers = ask(path, moving())
    accepted = next(answers)
    assert isinstance(accepted, Accepted)
    assert ring.asked == []
    ring.knocked += 1
    *_, came, outcome = answers
    assert isinstance(came, Progress)
    assert (came.stage, came.pid) == (1, 111)
    assert outcome == Outcome("stage 1 has moved to tcp://10.0.0.3:15551")
    assert ring.asked == [(1, "me")]
    assert ring.moved_to == "tcp://10.0.0.3:15551"


def test_nothing_changes_if_no_process_asks_for_the_place(path: Path, ring: FakeRing) -> None:
    accepted, outcome = ask(path, moving(wait_s=0.2))
    assert isinstance(accepted, Accepted)
    assert isinstance(outcome, Outcome)
    assert (outcome.exit_code, ring.asked) == (ExitCode.STAGE, [])
    assert "no other stage 1 has asked for the place in 0.2 s" in outcome.text


def test_a_count_that_restarts_from_zero_is_no_request(path: Path, ring: FakeRing) -> None:
    """The stage before, which counts, may be another process by then."""
    ring.knocked = 7
    answers = ask(path, moving(wait_s=0.5))
    next(answers)
    ring.knocked = 0
    (outcome,) = answers
    assert ring.asked == []
    assert outcome.exit_code == ExitCode.STAGE


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"stage": 0}, ExitCode.USAGE, "stage 0 of 3 cannot be moved"),
        ({"stage": 3}, ExitCode.USAGE, "stage 3 of 3 cannot be moved"),
        ({"plan_digest": "e"}, ExitCode.INVALID, "with the digest d, and another one is named"),
    ],
    ids=str,
)
def test_a_place_that_cannot_move_is_refused_before_anything_changes(
    path: Path, ring: FakeRing, fields: dict[str, object], code: ExitCode, text: str
) -> None:
    (outcome,) = ask(path, moving(**fields))
    assert isinstance(outcome, Outcome)
    assert outcome.exit_code == code
    assert text in outcome.text
    assert ring.asked == []


def test_layers_move_in_one_restart_of_the_stages_concerned(path: Path, ring: FakeRing) -> None:
    accepted, *progress, outcome = ask(path, Rebalance("me", ("0-1", "1-4", "4-6"), "d"))
    assert accepted == Accepted("2 of 3 stages come again with other layers")
    assert [answer.stage for answer in progress if isinstance(answer, Progress) and answer.stage is not None] == [0, 1]
    assert outcome == Outcome("the layers are now 0-1 1-4 4-6")
    assert ring.asked == [(0, "me"), (1, "me")]
    assert ring.layers == [(0, 1), (1, 4), (4, 6)]


@pytest.mark.parametrize(
    ("ranges", "code", "text"),
    [
        ("0-3 3-6", ExitCode.USAGE, "2 ranges are given for 3 stages"),
        ("0-1 1-2 2-3 3-6", ExitCode.USAGE, "the number of stages cannot change"),
        ("0-2 2-4 4-6", ExitCode.INVALID, "already"),
        ("0-2 2-5 4-6", ExitCode.INVALID, "overlap"),
        ("0-2 3-4 5-7", ExitCode.INVALID, ";"),
        ("0-2 2-4 a", ExitCode.INVALID, "a"),
    ],
)
def test_impossible_ranges_are_refused_before_anything_changes(
    path: Path, ring: FakeRing, ranges: str, code: ExitCode, text: str
) -> None:
    (outcome,) = ask(path, Rebalance("me", tuple(ranges.split()), "d"))
    assert isinstance(outcome, Outcome)
    assert outcome.exit_code == code
    assert text in outcome.text
    assert ring.asked == []


def test_stages_of_directories_of_their_own_keep_their_layers(path: Path, ring: FakeRing) -> None:
    ring.movable = False
    (outcome,) = ask(path, Rebalance("me", ("0-1", "1-4", "4-6"), "d"))
    assert isinstance(outcome, Outcome)
    assert "stage 0, 1 was started from its own directory" in outcome.text
    assert ring.asked == []


@pytest.mark.parametrize(("own", "named", "text"), [("d", "", "--plan"), ("", "e", "Leave out --plan")])
def test_a_plan_that_is_not_the_pipelines_is_refused(
    path: Path, ring: FakeRing, own: str, named: str, text: str
) -> None:
    ring.plan_digest = own
    (outcome,) = ask(path, Rebalance("me", ("0-1", "1-4", "4-6"), named))
    assert isinstance(outcome, Outcome)
    assert text in outcome.hint
    assert ring.asked == []


def test_a_ring_that_does_not_recover_is_not_changed(path: Path, ring: FakeRing) -> None:
    ring.may_recover = False
    (outcome,) = ask(path, Rollout("me"))
    assert outcome.exit_code == ExitCode.USAGE
    assert "--recovery-deadline 0" in outcome.text
    assert "start it anew" in outcome.hint
    assert ring.asked == []


def test_a_ring_that_ends_ends_the_change(path: Path, ring: FakeRing) -> None:
    ring.fault = stage_error("stage 1 has not come back in 2 s")
    (outcome,) = ask(path, Rollout("me"))
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
        b"a" * (MOST_BYTES + 10),
    ],
)
def test_a_malformed_request_changes_nothing(path: Path, ring: FakeRing, line: bytes) -> None:
    answer = first_answer(path, line)
    assert isinstance(answer, Outcome)
    assert answer.exit_code == ExitCode.USAGE
    assert ring.asked == []


def test_a_socket_without_a_head_is_named(tmp_path: Path) -> None:
    with pytest.raises(ZppError, match="no head takes a planned change") as caught:
        next(ask(tmp_path / "none", Rollout("me")))
    assert caught.value.exit_code is ExitCode.ADDRESS


def test_a_head_that_ends_meanwhile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ZppError, match="ended before the change was over"):
        read_answer(b"")
    with pytest.raises(ZppError, match="cannot be read"):
        read_answer(b"what?\n")


def test_the_requesters_name_is_one_line_of_plain_text() -> None:
    requester = whose("zpptool rollout")
    assert msgspec.convert({"type": "rollout", "by": requester}, Rollout).by == requester
