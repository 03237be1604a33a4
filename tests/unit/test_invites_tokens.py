# SPDX-License-Identifier: Apache-2.0
"""Tokens of invited stages: whole or refused, secrets not shown, and what stage 0 answers to whom."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.config.plan import PipelinePlan, make_plan
from zpptool.errors import ZppError
from zpptool.invites.desk import Desk
from zpptool.invites.invite import PREFIX, Invite, make_invites, plan_text, read_invite
from zpptool.invites.ledger import LEDGER, Ledger
from zpptool.invites.messages import MAX_REQUEST_BYTES, VERSION, Redeem, Verdict
from zpptool.invites.proof import proof_of
from zpptool.invites.state import StageState
from zpptool.wire.security.key_files import link_keys, read_key_file

ADDRESS, EXPIRES, NOW = "tcp://10.0.0.1:15555", 2_000_000_000, 1_900_000_000.0


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PipelinePlan:
    directory = tmp_path_factory.mktemp("invites") / "model"
    write_checkpoint(directory, llama(layers=6), llama_config(layers=6))
    return make_plan(directory, num_stages=3, base_port=15550, api_port=8000, hosts=["a", "b", "c"])


@pytest.fixture
def invites(plan: PipelinePlan) -> tuple[Invite, ...]:
    return make_invites(plan, ADDRESS, EXPIRES)


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def desk(invites: tuple[Invite, ...]) -> Iterator[Desk]:
    with opened_desk(invites) as made:
        yield made


class opened_desk:
    """The desk of stage 0, with the journal in its directory, as the listener opens it."""

    def __init__(self, invites: tuple[Invite, ...]) -> None:
        self._state, self._invite = StageState(invites[0]), invites[0]
        self._ledger = Ledger(self._state.directory)

    def __enter__(self) -> Desk:
        assert self._invite.head is not None
        return Desk(self._invite, plan_text(self._invite.head), self._state.own_keys(), self._ledger)

    def __exit__(self, *_: object) -> None:
        self._ledger.__exit__(None, None, None)


def request(invite: Invite, public: str, **changes: Any) -> Redeem:
    """The request of a stage with that key."""
    right = Redeem(
        version=VERSION,
        plan=invite.terms.plan,
        stage=invite.stage,
        proof=proof_of(invite.secret, invite.terms, invite.stage, public),
    )
    return msgspec.structs.replace(right, **changes)


def new_key() -> str:
    return zmq.curve_keypair()[0].decode()


def test_a_token_is_read_back_unchanged_and_holds_what_it_needs(invites, plan: PipelinePlan) -> None:
    assert [read_invite(invite.to_text()) for invite in invites] == list(invites)
    assert [len(invite.to_text()) < 600 for invite in invites[1:]] == [True, True]
    assert invites[1].terms.plan == plan.digest
    assert invites[1].source == plan.model
    assert plan_text(invites[0].head) == plan.to_yaml().encode()
    assert [invite.head is None for invite in invites] == [False, True, True]
    assert len({invite.secret for invite in invites}) == 3
    assert len({invite.pipeline for invite in invites}) == 1
    assert invites[0].pipeline != make_invites(plan, ADDRESS, EXPIRES)[0].pipeline


def test_no_secret_is_shown(invites) -> None:
    shown = repr(invites[0]) + repr(invites[0].head) + repr(invites[1])
    assert invites[0].head.listener_secret not in shown
    assert not any(repr(secret)[2:-1] in shown for secret in (invites[0].head.root, invites[1].secret))


def test_a_token_that_was_cut_or_changed_is_refused(invites) -> None:
    text = invites[1].to_text()
    draw = random.Random(7)
    for _ in range(200):
        at = draw.randrange(len(PREFIX), len(text))
        for changed in (
            text[:at],
            text[:at] + draw.choice("ABCxyz-_019") + text[at + 1 :],
            text[:at] + " " + text[at:],
        ):
            if changed != text:
                with pytest.raises(ZppError) as fault:
                    read_invite(changed)
                assert fault.value.exit_code == 3
                assert text[20:40] not in fault.value.message
    for wrong in ("", "zpp1-", "sk-123", PREFIX + "A" * 200000):
        with pytest.raises(ZppError):
            read_invite(wrong)
    assert read_invite(f" {text}\n") == invites[1]


def test_every_stage_gets_the_keys_of_its_neighbours_once_all_have_redeemed(invites, desk: Desk) -> None:
    states = {stage: StageState(invites[stage]) for stage in (1, 2)}
    own = {stage: state.own_keys() for stage, state in states.items()}
    publics = {stage: keys.own[0].public for stage, keys in own.items()}
    first = desk.answer(request(invites[1], publics[1]), publics[1], NOW)
    assert (first.verdict, first.missing, first.peers) == (Verdict.WAITING, (2,), {})
    assert states[1].keep_plan(first.plan).digest == invites[1].terms.plan
    answers = {2: desk.answer(request(invites[2], publics[2]), publics[2], NOW)}
    answers[1] = desk.answer(request(invites[1], publics[1]), publics[1], NOW)
    files = {}
    for stage, answer in answers.items():
        assert answer.verdict is Verdict.COMPLETE
        path = states[stage].keep_keys(own[stage], answer.pipeline, answer.created, answer.peers)
        assert path.stat().st_mode & 0o777 == 0o600
        files[stage] = read_key_file(path)
    host = StageState(invites[0]).own_keys()
    head, zero = host.own
    assert files[1].peers == {"stage 0": zero.public, "stage 2": publics[2]}
    assert files[2].peers == {"head": head.public, "stage 1": publics[1]}
    assert files[1].pipeline == files[2].pipeline == host.pipeline
    assert link_keys(files[2], 2, 1).peer_public == link_keys(files[1], 1, 2).public
    assert not desk.is_done
    for stage in (1, 2):
        desk.answer(request(invites[stage], publics[stage], has_joined=True), publics[stage], NOW)
    assert desk.is_done


def test_a_stage_that_died_before_its_answer_redeems_again_with_its_key_and_no_other_key_does(invites, plan) -> None:
    public, other = new_key(), new_key()
    with opened_desk(invites) as desk:
        assert desk.answer(request(invites[1], public), public, NOW).verdict is Verdict.WAITING
    with opened_desk(invites) as desk:  # stage 0 was started again, too
        again = desk.answer(request(invites[1], public), public, EXPIRES + 1.0)
        assert (again.verdict, again.missing) == (Verdict.WAITING, (2,))
        second = desk.answer(request(invites[1], other), other, NOW)
        assert second.verdict is Verdict.REFUSED
        assert "redeemed with another key" in second.reason


def test_what_is_refused_is_refused_by_name_and_learns_nothing(invites, plan: PipelinePlan, desk: Desk) -> None:
    public, other = new_key(), new_key()
    foreign = make_invites(plan, ADDRESS, EXPIRES)[1]
    late = msgspec.structs.replace(invites[1], terms=msgspec.structs.replace(invites[1].terms, expires=EXPIRES * 2))
    cases = {
        "for another plan": request(invites[1], public, plan="0" * 64),
        "not made with that of stage 0": request(foreign, public),
        "or it was changed": request(late, public),
        "was not made": request(invites[1], public, stage=2),
        "made with": request(invites[1], public, stage=0),
        "changed": request(invites[1], public, stage=3),
        "version 9": request(invites[1], public, version=9),
    }
    for reason, asked in cases.items():
        answer = desk.answer(asked, public, NOW)
        assert answer.verdict is Verdict.REFUSED
        assert reason in answer.reason
        assert (answer.plan, answer.peers) == (b"", {})
    replayed = desk.answer(request(invites[1], public), other, NOW)  # a proof that was made for another connection
    assert replayed.verdict is Verdict.REFUSED
    expired = desk.answer(request(invites[1], public), public, EXPIRES + 0.0)
    assert "has expired" in expired.reason
    assert desk.missing == (1, 2)
    with pytest.raises(ZppError, match=r"expired 2\.0 h ago"):
        invites[1].refuse_expired(EXPIRES + 7200)


def test_a_request_is_as_short_as_the_listener_demands(invites) -> None:
    longest = request(invites[1], new_key(), plan="f" * 128, stage=10_000, has_joined=True)
    assert len(msgspec.msgpack.encode(longest)) <= MAX_REQUEST_BYTES


def test_a_line_of_the_journal_that_a_crash_cut_off_is_ignored(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.record(1, "first")
    path = tmp_path / LEDGER
    path.write_bytes(path.read_bytes() + b'{"stage":2,"publ')
    with Ledger(tmp_path) as ledger:
        assert ledger.redeemed == {1: "first"}
        ledger.record(2, "second")
    with Ledger(tmp_path) as ledger:
        assert ledger.redeemed == {1: "first", 2: "second"}
    path.write_bytes(b"nonsense\n")
    with pytest.raises(ZppError, match="not a journal"):
        Ledger(tmp_path)
    path.chmod(0o644)
    with pytest.raises(ZppError, match="others can read"):
        Ledger(tmp_path)


def test_the_directory_of_a_stage_is_of_its_user_alone(invites) -> None:
    state = StageState(invites[1])
    assert state.directory.stat().st_mode & 0o777 == 0o700
    assert state.own_keys() == state.own_keys()
    assert not state.has_joined
    state.directory.chmod(0o755)
    with pytest.raises(ZppError, match="other users can enter"):
        StageState(invites[1])


def test_another_plan_than_that_of_the_invite_is_not_kept(invites, plan: PipelinePlan) -> None:
    state = StageState(invites[1])
    with pytest.raises(ZppError, match="another plan"):
        state.keep_plan(msgspec.structs.replace(plan, dtype="float32").to_yaml().encode())
    assert not state.plan_file.exists()


def test_an_inflated_plan_is_bounded(invites) -> None:
    import zlib

    bomb = msgspec.structs.replace(invites[0].head, plan=zlib.compress(b"a" * (1 << 24)))
    with pytest.raises(ZppError, match="longer than any plan"):
        plan_text(bomb)
    with pytest.raises(ZppError, match="damaged"):
        plan_text(msgspec.structs.replace(bomb, plan=base64.b64encode(b"x")))
