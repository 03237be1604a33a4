# SPDX-License-Identifier: Apache-2.0
"""Where strangers can reach a link there are keys, and who has not the right one is refused, counted and named."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq

from zpptool.errors import ExitCode, ZppError
from zpptool.wire.link import LinkReceiver, LinkRefused, LinkSender, LinkTimeout
from zpptool.wire.link.handshake_failures import Failure, Handshakes
from zpptool.wire.message.framing import Kind
from zpptool.wire.security.exposure import LinkSecurity, exposure
from zpptool.wire.security.key_files import KeyFile, LinkKeys, generate, link_keys

SOON_S = 20.0
INSECURE = LinkSecurity(insecure=True)


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:1", "tcp://127.9.9.9:1", "tcp://localhost:1", "tcp://[::1]:1", "tcp://LOCALHOST:*"],
)
def test_loopback_is_not_exposed(endpoint: str) -> None:
    assert exposure(endpoint) is None


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://0.0.0.0:1", "tcp://*:1", "tcp://[::]:1", "tcp://10.0.0.1:1", "tcp://node-b:1", "tcp://eth0:1",
        "tcp://127.0.0.1.example.org:1", "tcp://[::ffff:10.0.0.1]:1", "tcp://localhost.example.org:1", "ipc://@name",
    ],
)  # fmt: skip
def test_all_else_is(endpoint: str) -> None:
    assert exposure(endpoint)


def test_an_ipc_path_is_as_private_as_a_directory_above_it() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        _see_who_may_pass(Path(directory))


def _see_who_may_pass(above: Path) -> None:
    below = above / "below"
    below.mkdir()
    below.chmod(0o755)
    assert exposure(f"ipc://{below}/s") is None
    above.chmod(0o711)
    assert exposure(f"ipc://{below}/s") == f"other users can enter {below}"
    below.chmod(0o700)
    assert exposure(f"ipc://{below}/s") is None
    assert exposure("ipc:///tmp/s")


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:*", "tcp://*:*", "ipc://@zpptool-test", "ipc:///tmp/zpp-exposed"])
def test_what_strangers_can_reach_is_not_opened_without_keys(endpoint: str) -> None:
    with pytest.raises(ZppError, match=r"needs keys|is not private") as caught:
        LinkSender(endpoint, stage=0, peer=1)
    assert caught.value.exit_code is ExitCode.ADDRESS
    assert caught.value.hint
    LinkSender(endpoint, stage=0, peer=1, safety=INSECURE).close(0)


def test_nor_connected_to() -> None:
    with pytest.raises(ZppError, match="needs keys: other machines can reach it"):
        LinkReceiver("tcp://192.0.2.1:5555", stage=1, peer=0)
    LinkReceiver("tcp://192.0.2.1:5555", stage=1, peer=0, safety=INSECURE).close(0)


def test_keys_do_not_make_a_shared_directory_private() -> None:
    """An ipc link is not encrypted: its directory is what guards it."""
    safety = LinkSecurity(link_keys(generate(2)[0], 0, 1))
    with pytest.raises(ZppError, match="is not private"):
        LinkSender("ipc:///tmp/zpp-exposed", stage=0, peer=1, safety=safety)


FILES = generate(3)
OTHERS = generate(3)


def keys_of(files: tuple[KeyFile, ...], place: int, peer: int) -> LinkKeys:
    return link_keys(files[max(place, 0)], place, peer)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def push(notes: list[str]) -> Iterator[LinkSender]:
    """Stage 0's end, with keys, reachable from outside."""
    safety = LinkSecurity(keys_of(FILES, 0, 1))
    with LinkSender("tcp://0.0.0.0:*", stage=0, peer=1, safety=safety, note=notes.append) as link:
        yield link
        link.close(0)


def here(link: LinkSender) -> str:
    return f"tcp://127.0.0.1:{urlsplit(link.endpoint).port}"


def pull(push: LinkSender, keys: LinkKeys | None) -> LinkReceiver:
    return LinkReceiver(here(push), stage=1, peer=0, safety=LinkSecurity(keys))


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def test_the_two_that_know_each_other_speak(push: LinkSender) -> None:
    with pull(push, keys_of(FILES, 1, 0)) as receiver:
        for size in (10, 100_000, 3_000_000):
            push.send(Kind.TENSORS, b"h", [bytes(size)], timeout_s=SOON_S)
            assert receiver.recv(SOON_S).frames[0].nbytes == size
        assert (push.refused, push.last_error) == (0, "")


def stranger_with(context: zmq.Context, **keys: bytes) -> zmq.Socket:
    """A hostile receiver that speaks CURVE with any keys."""
    made = context.socket(zmq.DEALER)
    made.linger = 0
    for name, key in keys.items():
        setattr(made, f"curve_{name}", key)
    return made


NOBODY = dict(zip(("publickey", "secretkey"), zmq.curve_keypair(), strict=True))
STAGE_0 = keys_of(FILES, 0, 1).public


def pair_of(files: tuple[KeyFile, ...], stage: int) -> dict[str, bytes]:
    own = files[stage].own[-1]
    return {"publickey": own.public.encode(), "secretkey": own.secret.encode()}


STRANGERS = {
    "no keys": ({}, "without keys"),
    "a key of nobody": ({**NOBODY, "serverkey": STAGE_0}, "is not that of stage 1"),
    "the key of stage 2": ({**pair_of(FILES, 2), "serverkey": STAGE_0}, "it has the key of stage 2"),
    "our own key": ({**pair_of(FILES, 0), "serverkey": STAGE_0}, "the key of stage 0"),
    "stage 1's key of another generation": ({**pair_of(OTHERS, 1), "serverkey": STAGE_0}, "is not that of stage 1"),
    "another generation": (
        {**pair_of(OTHERS, 1), "serverkey": keys_of(OTHERS, 0, 1).public},
        "were the key files generated together?",
    ),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_is_refused_and_named_and_disturbs_nobody(push: LinkSender, notes: list[str], who: str) -> None:
    keys, why = STRANGERS[who]
    with zmq.Context() as context, stranger_with(context, **keys) as stranger:
        stranger.connect(here(push))
        until(lambda: push.refused)
        until(lambda: why in push.last_error)  # a connection that was broken off says less than the next one
        gone_at_once = who in ("no keys", "another generation")  # before anyone could look where it came from
        assert "127.0.0.1" in push.last_error or gone_at_once
        until(lambda: notes)
        assert any(why in note for note in notes)
        assert not push.connected
        with pull(push, keys_of(FILES, 1, 0)) as receiver:
            for number in range(50):
                push.send(Kind.CONTROL, str(number).encode(), timeout_s=SOON_S)
                assert receiver.recv(SOON_S).header == str(number).encode()
            assert push.connected
        assert not stranger.poll(100)


def test_bytes_that_are_no_zeromq_are_refused_and_told(push: LinkSender) -> None:
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00", bytes(4096), b""):
        before = push.refused
        with closing(socket.create_connection(("127.0.0.1", urlsplit(push.endpoint).port))) as probe:
            probe.sendall(garbage)
        until(lambda before=before: push.refused > before)
    with pull(push, keys_of(FILES, 1, 0)) as receiver:
        push.send(Kind.CONTROL, b"1", timeout_s=SOON_S)
        assert receiver.recv(SOON_S).header == b"1"


def test_who_holds_the_address_without_its_key_is_not_heard() -> None:
    """An impostor at the sender's address: whatever he has, it is not stage 0's secret key."""
    theirs = OTHERS[0].own[-1]
    for keys in ({}, {"curve_secretkey": theirs.secret.encode(), "curve_publickey": theirs.public.encode()}):
        with zmq.Context() as context, context.socket(zmq.ROUTER) as impostor:
            impostor.linger = 0
            if keys:
                impostor.curve_server = True
            for name, key in keys.items():
                setattr(impostor, name, key)
            port = impostor.bind_to_random_port("tcp://127.0.0.1")
            safety = LinkSecurity(keys_of(FILES, 1, 0))
            with LinkReceiver(f"tcp://127.0.0.1:{port}", stage=1, peer=0, safety=safety) as link:
                until(lambda link=link: link.last_error)
                with pytest.raises(LinkTimeout, match=r"broke off the handshake|speaks without keys"):
                    link.recv(0.05)
                assert not link.connected


def test_the_refused_end_says_why() -> None:
    safety = LinkSecurity(keys_of(FILES, 0, 1))
    with LinkSender("tcp://127.0.0.1:*", stage=0, peer=1, safety=safety) as push:
        with pull(push, None) as unkeyed:
            until(lambda: unkeyed.last_error)
        alien = LinkKeys("stage 1", NOBODY["publickey"], NOBODY["secretkey"], "stage 0", STAGE_0)
        with pull(push, alien) as link:
            until(lambda: "does not admit this key" in link.last_error)
        push.close(0)


def test_a_neighbours_key_does_not_let_it_call_itself_another(push: LinkSender) -> None:
    """Stage 1's key opens the door; but it says that it is stage 2."""
    with LinkReceiver(here(push), stage=2, peer=0, safety=LinkSecurity(keys_of(FILES, 1, 0))) as liar:
        until(lambda: push.refused)
        assert "it has the key of stage 1 and calls itself stage 2" in push.last_error
        assert not push.connected
        with pytest.raises(LinkRefused, match="calls itself stage 2"):
            liar.recv(SOON_S)


def test_an_end_that_was_refused_tries_again() -> None:
    """libzmq gives up for good when a handshake fails so; whoever comes to that address later is the right one."""
    keys = keys_of(FILES, 1, 0)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as impostor:
        impostor.linger = 0
        impostor.zap_domain = b"x"
        port = impostor.bind_to_random_port("tcp://127.0.0.1")
        address = f"tcp://127.0.0.1:{port}"
        with LinkReceiver(address, stage=1, peer=0, safety=LinkSecurity(keys)) as link:
            until(lambda: "speaks without keys" in link.last_error)
            impostor.close(0)
            with LinkSender(address, stage=0, peer=1, safety=LinkSecurity(keys_of(FILES, 0, 1))) as push:
                push.send(Kind.CONTROL, b"at last", timeout_s=SOON_S)
                assert link.recv(SOON_S).header == b"at last"


def test_a_connection_that_came_to_nothing_is_told_from_one_that_ended() -> None:
    seen = Handshakes(lambda descriptor: f"host:{descriptor}")
    begun, done, ended = zmq.EVENT_ACCEPTED, zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED
    assert [seen.take(*event) for event in ((begun, 5), (done, 0), (begun, 6))] == [None] * 3
    assert seen.take(ended, 5) is None
    assert seen.take(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, 7) is None
    assert seen.take(ended, 6) == Failure("host:6", zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, 7)
    assert seen.take(begun, 8) is None
    assert seen.take(ended, 8) == Failure("host:8", 0, 0)
