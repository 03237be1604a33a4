# SPDX-License-Identifier: Apache-2.0
"""A link that others can reach needs keys, and a connection without the right key is refused, counted and named."""

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
from zpptool.wire.link import LinkOptions, LinkReceiver, LinkRefused, LinkSender, LinkTimeout
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
def test_all_other_addresses_are_exposed(endpoint: str) -> None:
    assert exposure(endpoint)


def test_an_ipc_path_is_as_private_as_a_directory_above_it() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        _check_directories(Path(directory))


def _check_directories(above: Path) -> None:
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
def test_an_exposed_address_is_not_bound_without_keys(endpoint: str) -> None:
    with pytest.raises(ZppError, match=r"needs keys|is not private") as caught:
        LinkSender(endpoint, stage=0, peer=1)
    assert caught.value.exit_code is ExitCode.ADDRESS
    assert caught.value.hint
    LinkSender(endpoint, stage=0, peer=1, options=LinkOptions(security=INSECURE)).close(0)


def test_an_exposed_address_is_not_connected_to_without_keys() -> None:
    with pytest.raises(ZppError, match="needs keys: other machines can reach it"):
        LinkReceiver("tcp://192.0.2.1:5555", stage=1, peer=0)
    LinkReceiver("tcp://192.0.2.1:5555", stage=1, peer=0, options=LinkOptions(security=INSECURE)).close(0)


def test_keys_do_not_make_a_shared_directory_private() -> None:
    """An ipc link is not encrypted: its directory protects it."""
    security = LinkSecurity(link_keys(generate(2)[0], 0, 1))
    with pytest.raises(ZppError, match="is not private"):
        LinkSender("ipc:///tmp/zpp-exposed", stage=0, peer=1, options=LinkOptions(security=security))


FILES = generate(3)
OTHERS = generate(3)


def keys_of(files: tuple[KeyFile, ...], place: int, peer: int) -> LinkKeys:
    return link_keys(files[max(place, 0)], place, peer)


@pytest.fixture
def sender() -> Iterator[LinkSender]:
    """Stage 0's end, with keys, reachable from outside."""
    security = LinkSecurity(keys_of(FILES, 0, 1))
    with LinkSender("tcp://0.0.0.0:*", stage=0, peer=1, options=LinkOptions(security=security)) as link:
        yield link
        link.close(0)


def here(link: LinkSender) -> str:
    return f"tcp://127.0.0.1:{urlsplit(link.endpoint).port}"


def open_receiver(sender: LinkSender, keys: LinkKeys | None) -> LinkReceiver:
    return LinkReceiver(here(sender), stage=1, peer=0, options=LinkOptions(security=LinkSecurity(keys)))


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "the condition was not true in time"
        time.sleep(0.01)


def test_neighbours_with_matching_keys_exchange_messages(sender: LinkSender) -> None:
    with open_receiver(sender, keys_of(FILES, 1, 0)) as receiver:
        for size in (10, 100_000, 3_000_000):
            sender.send(Kind.TENSORS, b"h", [bytes(size)], timeout_s=SOON_S)
            assert receiver.recv(SOON_S).frames[0].nbytes == size
        assert (sender.refused, sender.last_error) == (0, "")


def stranger_with(context: zmq.Context, **keys: bytes) -> zmq.Socket:
    """A hostile receiver with any CURVE keys."""
    made = context.socket(zmq.DEALER)
    made.linger = 0
    for name, key in keys.items():
        setattr(made, f"curve_{name}", key)
    return made


UNKNOWN_KEYS = dict(zip(("publickey", "secretkey"), zmq.curve_keypair(), strict=True))
STAGE_0 = keys_of(FILES, 0, 1).public


def pair_of(files: tuple[KeyFile, ...], stage: int) -> dict[str, bytes]:
    own = files[stage].own[-1]
    return {"publickey": own.public.encode(), "secretkey": own.secret.encode()}


STRANGERS = {
    "no keys": ({}, "without keys"),
    "an unknown key": ({**UNKNOWN_KEYS, "serverkey": STAGE_0}, "is not that of stage 1"),
    "the key of stage 2": ({**pair_of(FILES, 2), "serverkey": STAGE_0}, "it has the key of stage 2"),
    "our own key": ({**pair_of(FILES, 0), "serverkey": STAGE_0}, "the key of stage 0"),
    "stage 1's key of another generation": ({**pair_of(OTHERS, 1), "serverkey": STAGE_0}, "is not that of stage 1"),
    "another generation": (
        {**pair_of(OTHERS, 1), "serverkey": keys_of(OTHERS, 0, 1).public},
        "were the key files generated together?",
    ),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_is_refused_and_named_without_effect_on_the_link(
    sender: LinkSender, caplog: pytest.LogCaptureFixture, who: str
) -> None:
    keys, why = STRANGERS[who]
    with zmq.Context() as context, stranger_with(context, **keys) as stranger:
        stranger.connect(here(sender))
        wait_until(lambda: sender.refused)
        wait_until(lambda: why in sender.last_error)  # the first failure may lack the detail
        closed_at_once = who in ("no keys", "another generation")  # before its address could be read
        assert "127.0.0.1" in sender.last_error or closed_at_once
        wait_until(lambda: any(why in record.getMessage() for record in caplog.records))
        assert {(record.levelname, record.stage) for record in caplog.records} == {("WARNING", "stage 0")}
        assert not sender.connected
        with open_receiver(sender, keys_of(FILES, 1, 0)) as receiver:
            for number in range(50):
                sender.send(Kind.CONTROL, str(number).encode(), timeout_s=SOON_S)
                assert receiver.recv(SOON_S).header == str(number).encode()
            assert sender.connected
        assert not stranger.poll(100)


def test_bytes_that_are_not_zeromq_are_refused_and_counted(sender: LinkSender) -> None:
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00", bytes(4096), b""):
        before = sender.refused
        with closing(socket.create_connection(("127.0.0.1", urlsplit(sender.endpoint).port))) as probe:
            probe.sendall(garbage)
        wait_until(lambda before=before: sender.refused > before)
    with open_receiver(sender, keys_of(FILES, 1, 0)) as receiver:
        sender.send(Kind.CONTROL, b"1", timeout_s=SOON_S)
        assert receiver.recv(SOON_S).header == b"1"


def test_an_impostor_without_the_key_is_not_accepted() -> None:
    """An impostor at the sender's address does not have stage 0's secret key."""
    theirs = OTHERS[0].own[-1]
    for keys in ({}, {"curve_secretkey": theirs.secret.encode(), "curve_publickey": theirs.public.encode()}):
        with zmq.Context() as context, context.socket(zmq.ROUTER) as impostor:
            impostor.linger = 0
            if keys:
                impostor.curve_server = True
            for name, key in keys.items():
                setattr(impostor, name, key)
            port = impostor.bind_to_random_port("tcp://127.0.0.1")
            security = LinkSecurity(keys_of(FILES, 1, 0))
            with LinkReceiver(
                f"tcp://127.0.0.1:{port}", stage=1, peer=0, options=LinkOptions(security=security)
            ) as link:
                wait_until(lambda link=link: link.last_error)
                with pytest.raises(LinkTimeout, match=r"broke off the handshake|speaks without keys"):
                    link.recv(0.05)
                assert not link.connected


def test_the_refused_end_says_why() -> None:
    security = LinkSecurity(keys_of(FILES, 0, 1))
    with LinkSender("tcp://127.0.0.1:*", stage=0, peer=1, options=LinkOptions(security=security)) as sender:
        with open_receiver(sender, None) as unkeyed:
            wait_until(lambda: unkeyed.last_error)
        alien = LinkKeys("stage 1", UNKNOWN_KEYS["publickey"], UNKNOWN_KEYS["secretkey"], "stage 0", STAGE_0)
        with open_receiver(sender, alien) as link:
            wait_until(lambda: "does not admit this key" in link.last_error)
        sender.close(0)


def test_a_neighbours_key_does_not_let_it_call_itself_another(sender: LinkSender) -> None:
    """Stage 1's key is admitted, but the greeting is that of stage 2."""
    with LinkReceiver(
        here(sender), stage=2, peer=0, options=LinkOptions(security=LinkSecurity(keys_of(FILES, 1, 0)))
    ) as liar:
        wait_until(lambda: sender.refused)
        assert "it has the key of stage 1 and calls itself stage 2" in sender.last_error
        assert not sender.connected
        with pytest.raises(LinkRefused, match="calls itself stage 2"):
            liar.recv(SOON_S)


def test_an_end_that_was_refused_tries_again() -> None:
    """libzmq gives up for good when a handshake fails like that; later the right sender binds the address."""
    keys = keys_of(FILES, 1, 0)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as impostor:
        impostor.linger = 0
        impostor.zap_domain = b"x"
        port = impostor.bind_to_random_port("tcp://127.0.0.1")
        address = f"tcp://127.0.0.1:{port}"
        with LinkReceiver(address, stage=1, peer=0, options=LinkOptions(security=LinkSecurity(keys))) as link:
            wait_until(lambda: "speaks without keys" in link.last_error)
            impostor.close(0)
            with LinkSender(
                address, stage=0, peer=1, options=LinkOptions(security=LinkSecurity(keys_of(FILES, 0, 1)))
            ) as sender:
                sender.send(Kind.CONTROL, b"at last", timeout_s=SOON_S)
                assert link.recv(SOON_S).header == b"at last"


def test_a_failed_handshake_is_distinguished_from_a_connection_that_ended() -> None:
    seen = Handshakes(lambda descriptor: f"host:{descriptor}")
    begun, done, ended = zmq.EVENT_ACCEPTED, zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED
    assert [seen.take(*event) for event in ((begun, 5), (done, 0), (begun, 6))] == [None] * 3
    assert seen.take(ended, 5) is None
    assert seen.take(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, 7) is None
    assert seen.take(ended, 6) == Failure("host:6", zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, 7)
    assert seen.take(begun, 8) is None
    assert seen.take(ended, 8) == Failure("host:8", 0, 0)
