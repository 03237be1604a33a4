# SPDX-License-Identifier: Apache-2.0
"""Stages join with tokens, each in a process with a state directory of its own: keys that fit, and what is refused."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from checkpoints import llama, llama_config, write_checkpoint
from joins import Joining
from stages import free_base_port

from zpptool.config.plan import PipelinePlan, make_plan
from zpptool.invites.invite import make_invites
from zpptool.invites.join import LISTENER
from zpptool.invites.listener import MAX_FILES
from zpptool.invites.redeem import Redeemer
from zpptool.invites.saved import save_invites
from zpptool.invites.state import StageState
from zpptool.wire.security.key_files import link_keys, read_key_file

pytestmark = pytest.mark.timeout(120)

Start = Callable[..., Joining]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PipelinePlan:
    directory = tmp_path_factory.mktemp("join") / "model"
    write_checkpoint(directory, llama(layers=6), llama_config(layers=6))
    base = free_base_port(6)
    return make_plan(directory, num_stages=3, base_port=base, api_port=base + 4, invite_port=base + 5)


def invited(plan: PipelinePlan, directory: Path, seconds: float = 600) -> list[Path]:
    """New invites of the plan, in files."""
    assert plan.invite_address is not None
    return save_invites(make_invites(plan, plan.invite_address, int(time.time() + seconds)), directory)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a stage that joins: by its invite and the machine that it is on, by name."""
    running: list[Joining] = []

    def begin(invite: Path, machine: str = "") -> Joining:
        number = len(running)
        made = Joining(invite, tmp_path / (machine or invite.stem), tmp_path / f"{number}.log")
        running.append(made)
        return made

    yield begin
    for process in running:
        process.close()


def listener_of(stage: Joining) -> psutil.Process:
    return next(child for child in psutil.Process(stage.process.pid).children() if LISTENER in child.cmdline())


def until(happens: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_three_stages_join_in_any_order_and_need_no_invite_again(plan: PipelinePlan, tmp_path: Path, start) -> None:
    invites = invited(plan, tmp_path / "invites")
    later = start(invites[2])  # before stage 0
    time.sleep(1)
    stages = [start(invites[0]), start(invites[1]), later]
    files = [read_key_file(stage.key_file()) for stage in stages]
    assert len({file.pipeline for file in files}) == 1
    for place, peer, own, other in ((0, 1, 0, 1), (1, 2, 1, 2), (2, -1, 2, 0)):
        mine, theirs = link_keys(files[own], place, peer), link_keys(files[other], peer, place)
        assert (mine.public, mine.peer_public) == (theirs.peer_public, theirs.public)
    assert not {pair.secret for pair in files[1].own} & {pair.secret for pair in files[2].own}
    until(lambda: "ledger" in str(list((tmp_path / "stage_0").rglob("*"))))
    until(lambda: not psutil.Process(stages[0].process.pid).children())  # all have joined: the listener has ended
    for stage in stages:
        stage.close()
    again = [start(invites[number]) for number in (1, 0)]
    assert [read_key_file(stage.key_file()) for stage in again] == [files[1], files[0]]


def test_a_token_is_redeemed_by_one_machine_only(plan: PipelinePlan, tmp_path: Path, start) -> None:
    invites = invited(plan, tmp_path / "invites")
    first, second = start(invites[0]), start(invites[1])
    until(lambda: "stage 1 has joined" in first.log.read_text())
    code, text = start(invites[1], "a thief").failure()
    assert code == 3
    assert "stage 1 is refused: the invite of stage 1 has been redeemed with another key" in text
    assert "refused stage 1" in first.log.read_text()
    third = start(invites[2])
    assert read_key_file(second.key_file()).stage == 1
    assert read_key_file(third.key_file()).stage == 2


@pytest.mark.long
def test_a_stage_that_dies_between_request_and_answer_joins_with_the_same_key(
    plan: PipelinePlan, tmp_path: Path, start, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = invited(plan, tmp_path / "invites")
    first = start(files[0])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "stage_1"))
    from zpptool.invites.saved import given_invite

    invite = given_invite(str(files[1]))
    own = StageState(invite).own_keys()
    with Redeemer(invite, own.own[0]) as redeemer:
        until(lambda: redeemer.ask() is not None)  # the answer is lost with this process
    listener_of(first).kill()
    first.close()
    stages = [start(path) for path in files]
    assert read_key_file(stages[1].key_file()).own == own.own
    assert read_key_file(stages[2].key_file()).peers["stage 1"] == own.own[0].public


def test_an_invite_of_another_plan_run_is_refused_by_name(plan: PipelinePlan, tmp_path: Path, start) -> None:
    start(invited(plan, tmp_path / "invites")[0])
    code, text = start(invited(plan, tmp_path / "others")[1], "other").failure(60)
    assert code == 3
    assert "does not have the key of this invite" in text


@pytest.mark.long
def test_invites_that_expire_end_the_wait_on_both_sides(plan: PipelinePlan, tmp_path: Path, start) -> None:
    invites = invited(plan, tmp_path / "invites", 6)
    first, second = start(invites[0]), start(invites[1])
    assert first.failure()[0] == 6
    assert "no invite was redeemed for stage 2" in first.log.read_text()
    code, text = second.failure()
    assert code == 3
    assert "the invite of stage 1 expired" in text
    code, text = start(invites[2]).failure()
    assert code == 3
    assert "expired" in text


@pytest.mark.long
def test_strangers_cannot_keep_stages_from_joining(plan: PipelinePlan, tmp_path: Path, start) -> None:
    """They hold every connection that the listener may have, silently or with noise; each is closed after a while."""
    invites = invited(plan, tmp_path / "invites")
    first = start(invites[0])
    until(lambda: "stages can join at" in first.log.read_text())
    listener = listener_of(first)
    address = ("127.0.0.1", int(plan.invite_address.rpartition(":")[2]))
    before = listener.memory_info().rss
    strangers = []
    for number in range(3 * MAX_FILES):
        with suppress(OSError):
            stranger = socket.create_connection(address, timeout=0.2)
            strangers.append(stranger)
            if number % 2:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
    assert listener.num_fds() <= MAX_FILES
    stages = [first, start(invites[1]), start(invites[2])]
    assert [read_key_file(stage.key_file()).stage for stage in stages] == [0, 1, 2]
    assert listener.memory_info().rss - before < 64 << 20 if listener.is_running() else True
    for stranger in strangers:
        stranger.close()
