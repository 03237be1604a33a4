# SPDX-License-Identifier: Apache-2.0
"""Key files: for one host each, readable by their owner alone, whole, and silent about their secrets."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
import zmq

from zpptool.errors import ExitCode, ZppError
from zpptool.places import HEAD, place_name
from zpptool.wire.security.key_files import (
    KeyFile,
    KeyPair,
    file_name,
    generate,
    key_path,
    link_keys,
    public_view,
    read_key_file,
    write_key_files,
)


def ring(num_stages: int) -> list[tuple[int, int]]:
    """The tcp links of a pipeline: who sends, who receives."""
    return [(stage, HEAD if stage == num_stages - 1 else stage + 1) for stage in range(num_stages)]


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
def test_the_two_ends_of_every_link_know_each_other(num_stages: int) -> None:
    files = generate(num_stages)
    for sender, receiver in ring(num_stages):
        there = link_keys(files[max(sender, 0)], sender, receiver)
        here = link_keys(files[max(receiver, 0)], receiver, sender)
        assert (there.peer_public, here.peer_public) == (here.public, there.public)
        assert (there.place, there.peer) == (place_name(sender), place_name(receiver))
        assert zmq.curve_public(here.secret) == here.public


def test_a_host_gets_its_own_secrets_and_its_neighbours_public_keys_alone() -> None:
    files = generate(4)
    assert [[pair.place for pair in item.own] for item in files] == [
        ["head", "stage 0"], ["stage 1"], ["stage 2"], ["stage 3"]
    ]  # fmt: skip
    assert [sorted(item.peers) for item in files] == [
        ["stage 1", "stage 3"], ["stage 0", "stage 2"], ["stage 1", "stage 3"], ["head", "stage 2"]
    ]  # fmt: skip
    assert len({item.pipeline for item in files}) == 1
    assert len({pair.secret for item in files for pair in item.own}) == 5


@pytest.mark.parametrize("umask", [0, 0o777])
def test_files_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700)
    before = os.umask(umask)
    try:
        written = write_key_files(generate(2), directory)
    finally:
        os.umask(before)
    assert [path.name for path in written] == ["stage_0.keys", "stage_1.keys"]
    assert {path.stat().st_mode & 0o777 for path in written} == {0o600}
    assert sorted(os.listdir(directory)) == ["stage_0.keys", "stage_1.keys"]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    files = generate(2)
    directory = tmp_path / "keys"
    assert tuple(map(read_key_file, write_key_files(files, directory))) == files
    assert directory.stat().st_mode & 0o777 == 0o700
    assert key_path(directory, 1) == directory / file_name(1)
    assert key_path(directory / "stage_0.keys", 1) == directory / "stage_0.keys"


def test_keys_are_overwritten_only_with_force_and_leftover_ones_are_removed(tmp_path: Path) -> None:
    write_key_files(generate(3), tmp_path)
    before = (tmp_path / file_name(0)).read_bytes()
    with pytest.raises(ZppError, match="holds key files already"):
        write_key_files(generate(2), tmp_path)
    assert (tmp_path / file_name(0)).read_bytes() == before
    write_key_files(generate(2), tmp_path, force=True)
    assert (tmp_path / file_name(0)).read_bytes() != before
    assert sorted(os.listdir(tmp_path)) == ["stage_0.keys", "stage_1.keys"]


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "keys"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    with pytest.raises(ZppError, match="others can enter") as caught:
        write_key_files(generate(1), open_to_all)
    assert caught.value.hint == f"chmod 700 {open_to_all}"
    assert not os.listdir(open_to_all)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644, 0o602, 0o610])
def test_a_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = write_key_files(generate(1), tmp_path)[0]
    path.chmod(mode)
    with pytest.raises(ZppError, match=f"others can read or change .* \\(mode {mode:04o}\\)") as caught:
        read_key_file(path)
    assert caught.value.hint == f"chmod 600 {path}"
    assert caught.value.exit_code is ExitCode.INVALID


def test_root_may_hand_a_file_to_a_group_as_kubernetes_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can own a file of root's")
    path = write_key_files(generate(1), tmp_path)[0]
    path.chmod(0o440)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert read_key_file(path).stage == 0
    path.chmod(0o444)
    with pytest.raises(ZppError, match="others can read"):
        read_key_file(path)


def test_another_users_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = write_key_files(generate(1), tmp_path)[0]
    os.chown(path, 1234, 1234)
    with pytest.raises(ZppError, match="belongs to another user"):
        read_key_file(path)


def changed(keys: KeyFile, **fields: object) -> KeyFile:
    return msgspec.structs.replace(keys, **fields)


def test_a_file_that_cannot_be_right_is_refused(tmp_path: Path) -> None:
    good = generate(3)[1]
    other = generate(3)[1]
    pair, strange = good.own[0], other.own[0]
    bad = [
        (changed(good, schema_version=9), "schema version 9"),
        (changed(good, stage=3), "no stage 3 of 3"),
        (changed(good, stage=-1), "no stage -1 of 3"),
        (changed(good, peers={"stage 0": "x"}), "public key of stage 0 is not a key"),
        (changed(good, peers={"stage 0": "#" * 40}), "public key of stage 0 is not a key"),
        (changed(good, peers={"stage 0": "\x7f" * 40}), "public key of stage 0 is not a key"),
        (changed(good, own=(KeyPair(pair.place, pair.public, strange.secret),)), "does not belong to its public key"),
        (changed(good, own=(KeyPair(pair.place, pair.public, "short"),)), "does not belong to its public key"),
    ]
    for keys, expected in bad:
        path = tmp_path / "bad.keys"
        path.write_bytes(msgspec.json.encode(keys))
        path.chmod(0o600)
        with pytest.raises(ZppError, match=expected) as caught:
            read_key_file(path)
        assert pair.secret not in str(caught.value)
    for content in (b"", b"{}", b"\xff", b"[1", msgspec.json.encode({**msgspec.to_builtins(good), "more": 1})):
        path.write_bytes(content)
        with pytest.raises(ZppError, match="is not a key file"):
            read_key_file(path)
    path.write_bytes(b" " * (1 << 17))
    with pytest.raises(ZppError, match="larger than any key file"):
        read_key_file(path)
    with pytest.raises(ZppError, match="cannot be read"):
        read_key_file(tmp_path / "none.keys")
    with pytest.raises(ZppError, match="not a regular file"):
        read_key_file(Path("/dev/null"))


def test_the_key_file_of_another_stage_is_named_in_the_refusal() -> None:
    files = generate(3)
    with pytest.raises(ZppError, match="key file of stage 1 of 3 has no keys of stage 2"):
        link_keys(files[1], 2, HEAD)
    with pytest.raises(ZppError, match="key file of stage 1 of 3 has no public key of stage 3"):
        link_keys(files[1], 1, 3)


def test_nothing_that_is_shown_holds_a_secret() -> None:
    for keys in generate(2):
        link = link_keys(keys, keys.stage, HEAD if keys.stage else 1)
        for secret in [pair.secret for pair in keys.own]:
            assert secret not in f"{keys!r} {public_view(keys)} {link!r}"
