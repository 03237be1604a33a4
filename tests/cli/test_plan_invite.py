# SPDX-License-Identifier: Apache-2.0
"""`zpptool plan --invite` and what `run-stage --invite` refuses, as a user runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint
from conftest import Ran

from zpptool.invites.invite import read_invite

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plan_invite") / "model"
    return write_checkpoint(directory, llama(layers=6), llama_config(layers=6))


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_one_token_a_stage_is_printed_with_its_command(model: Path, zpptool: Run) -> None:
    made = zpptool("plan", model, "--num-stages", 3, "--hosts", "a,b,c", "--invite", "--json").json
    invites = [read_invite(text) for text in made["invites"]]
    assert [(invite.stage, invite.terms.plan) for invite in invites] == [(stage, made["digest"]) for stage in range(3)]
    assert {invite.terms.address for invite in invites} == {"tcp://a:15555"}
    assert {invite.source for invite in invites} == {made["model"]}
    assert made["hosts"][1]["commands"] == [f"zpptool run-stage --invite {made['invites'][1]}"]
    assert [rule["peer"] for rule in made["hosts"][0]["open"] if rule["port"] == 15555] == ["b", "c"]
    token = {"ZPP_INVITE": made["invites"][1]}  # of a shell in which a stage was started
    shown = zpptool("plan", model, "--num-stages", 2, "--hosts", "a,b", "--invite", env=token).out
    assert shown.count("zpptool run-stage --invite zpp1-") == 2
    assert max(map(len, shown.splitlines())) > 400, "a token is one word, unwrapped"


def test_tokens_are_saved_for_their_user_alone(model: Path, tmp_path: Path, zpptool: Run) -> None:
    directory, words = tmp_path / "invites", ("plan", model, "--num-stages", 2, "--invite-dir", tmp_path / "invites")
    ran = zpptool(*words, "-o", tmp_path / "zpp.yaml")
    assert ran.code == 0, ran.err
    assert "zpp1-" not in ran.out
    assert f"zpptool run-stage --invite {directory}/stage_1.invite" in ran.out
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {
        "stage_0.invite": 0o600,
        "stage_1.invite": 0o600,
    }
    assert "invite_port: 15554" in (tmp_path / "zpp.yaml").read_text()
    before = (directory / "stage_1.invite").read_text()
    assert zpptool(*words).code == 3
    assert zpptool(*words, "--force").code == 0
    assert (directory / "stage_1.invite").read_text() != before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--num-stages", "1", "--invite"), 2, "no other stage to invite"),
        (("--num-stages", "2", "--invite-port", "9"), 2, "--invite too"),
        (("--num-stages", "2", "--invite", "--invite-port", "8000"), 5, "is also the API port"),
        (("--num-stages", "2", "--invite", "--invite-port", "15550"), 5, "stage 0 binds"),
        (("--num-stages", "2", "--invite", "--base-port", "65532"), 5, "65536 does not lie between"),
    ],
)
def test_what_cannot_be_invited_is_refused(
    model: Path, zpptool: Run, words: tuple[str, ...], code: int, message
) -> None:
    ran = zpptool("plan", model, *words)
    assert (ran.code, message in ran.err) == (code, True), ran.err


def test_a_wrong_invite_is_refused_by_name(model: Path, tmp_path: Path, zpptool: Run) -> None:
    zpptool("plan", model, "--num-stages", 2, "--invite-dir", tmp_path / "invites")
    file = tmp_path / "invites" / "stage_1.invite"
    token = file.read_text().strip()
    damaged = zpptool("run-stage", "--invite", token[:-3])
    assert (damaged.code, "a part of it is missing" in damaged.err) == (3, True)
    assert token[10:40] not in damaged.err
    assert "list of processes" in damaged.err
    assert "neither an invite nor a file" in zpptool("run-stage", "--invite", "nothing.invite").err
    for words in (("--stage-idx", 0), ("--plan", "zpp.yaml"), ("--keys", "keys")):
        ran = zpptool("run-stage", "--invite", file, *words)
        assert (ran.code, "the invite gives these already" in ran.err) == (2, True), ran.err
    beside = zpptool("run-stage", "--invite", file, "--dtype", "float32")
    assert (beside.code, "leave out --dtype" in beside.err) == (2, True), beside.err
    file.chmod(0o644)
    open_to_all = zpptool("run-stage", "--invite", file)
    assert (open_to_all.code, "others can read" in open_to_all.err) == (3, True)
