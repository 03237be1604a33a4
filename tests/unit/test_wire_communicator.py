# SPDX-License-Identifier: Apache-2.0
"""Ranks in processes of their own exchange tensor dicts with their neighbours, and may reuse what they sent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zpptool.errors import ExitCode, ZppError
from zpptool.wire import ZeroMQCommunicator
from zpptool.wire.link import LinkError, LinkSender, LinkTimeout
from zpptool.wire.message.framing import Kind, Limits, WireError
from zpptool.wire.security.key_files import generate

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SPAWN = multiprocessing.get_context("spawn")
EXAMPLE = Path(__file__).parents[2] / "examples" / "communicator.py"


def free_addresses(count: int) -> list[str]:
    """TCP endpoints that are free now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return [f"tcp://127.0.0.1:{port}" for port in ports]


def pass_on(rank: int, addresses: list[str], rounds: int) -> None:
    """A rank between: adds one to every tensor, writes its rank into the trace, sends the dict on."""
    torch.set_num_threads(1)
    with ZeroMQCommunicator(rank, len(addresses), bind=addresses[rank], connect=addresses[rank - 1]) as ring:
        for _ in range(rounds):
            got = ring.recv_tensor_dict()
            for value in got.values():
                if isinstance(value, torch.Tensor):
                    value.add_(1)
            got["trace"].append(rank)
            ring.send_tensor_dict(got)


@pytest.fixture(params=["tcp", "ipc"])
def addresses(request, tmp_path) -> list[str]:
    """What the three ranks bind."""
    return free_addresses(3) if request.param == "tcp" else [f"ipc://{tmp_path}/{rank}" for rank in range(3)]


@pytest.fixture
def pair() -> Iterator[tuple[ZeroMQCommunicator, ZeroMQCommunicator]]:
    """Ranks 0 and 1 in one process; rank 0 only sends."""
    with (
        ZeroMQCommunicator(0, 2, bind="tcp://127.0.0.1:*", timeout_s=10) as first,
        ZeroMQCommunicator(1, 2, connect=first.endpoint, timeout_s=10) as second,
    ):
        yield first, second


@pytest.mark.parametrize("size", [1, 16_777_216])
def test_a_dict_goes_round_a_ring_of_three_processes(addresses, size):
    rounds = 3
    others = [SPAWN.Process(target=pass_on, args=(rank, addresses, rounds)) for rank in (2, 1)]
    for process in others:
        process.start()
    with ZeroMQCommunicator(0, 3, bind=addresses[0], connect=addresses[2]) as ring:
        for number in range(rounds):
            states = torch.full((size,), float(number))
            sent = {"hidden_states": states, "residual": torch.ones(2, 3).t(), "trace": [0], "step": number}
            ring.send_tensor_dict(sent)
            states.fill_(-1)
            got = ring.recv_tensor_dict()
            assert torch.all(got["hidden_states"] == number + 2)
            assert torch.equal(got["residual"], torch.full((3, 2), 3.0))
            assert (got["trace"], got["step"]) == ([0, 1, 2], number)
    for process in others:
        process.join(20)
        assert process.exitcode == 0


@pytest.mark.parametrize("size", [100, 100_000, 2_000_000])
def test_a_sent_tensor_may_be_overwritten_at_once(pair, size):
    first, second = pair
    states = torch.empty(size)
    for step in range(6):
        states.fill_(step)
        first.send_tensor_dict({"states": states})
        states.fill_(-1)
        assert torch.all(second.recv_tensor_dict()["states"] == step)


def test_isend_hands_out_when_the_tensor_may_be_overwritten(pair):
    first, second = pair
    states = torch.ones(4_000_000)
    handle = first.isend_tensor_dict({"states": states})
    got = second.recv_tensor_dict()
    handle.wait()
    assert handle.is_completed()
    states.fill_(-1)
    assert torch.all(got["states"] == 1)


def test_one_thread_sends_while_another_receives():
    addresses = free_addresses(2)
    with (
        ZeroMQCommunicator(0, 2, bind=addresses[0], connect=addresses[1], timeout_s=20) as first,
        ZeroMQCommunicator(1, 2, bind=addresses[1], connect=addresses[0], timeout_s=20) as second,
    ):
        messages = [{"t": torch.full((30_000,), float(number)), "n": number} for number in range(100)]
        faults: list[BaseException] = []

        def sends(ring: ZeroMQCommunicator) -> None:
            for message in messages:
                ring.send_tensor_dict(message)

        def receives(ring: ZeroMQCommunicator) -> None:
            try:
                for message in messages:
                    got = ring.recv_tensor_dict()
                    assert got["n"] == message["n"]
                    assert torch.equal(got["t"], message["t"])
            except BaseException as error:
                faults.append(error)

        threads = [
            threading.Thread(target=work, args=(ring,)) for ring in (first, second) for work in (sends, receives)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not faults


def test_only_neighbours_can_be_reached(pair):
    first, second = pair
    first.send_tensor_dict({"n": 1}, dst=1)
    assert second.recv_tensor_dict(src=0) == {"n": 1}
    for call in (
        lambda: first.send_tensor_dict({}, dst=0),
        lambda: second.recv_tensor_dict(src=1),
        lambda: second.send_tensor_dict({}),
        lambda: first.recv_tensor_dict(),
    ):
        with pytest.raises(ZppError, match=r"Rank \d cannot") as caught:
            call()
        assert caught.value.exit_code is ExitCode.USAGE


def test_places_on_the_ring():
    with ZeroMQCommunicator(2, 3, bind="tcp://127.0.0.1:*") as last:
        assert (last.next_rank, last.prev_rank, last.is_first_rank, last.is_last_rank) == (0, 1, False, True)
    for rank, world_size in ((0, 1), (3, 3), (-1, 2)):
        with pytest.raises(ZppError, match="is impossible"):
            ZeroMQCommunicator(rank, world_size, bind="tcp://127.0.0.1:*")
    with pytest.raises(ZppError, match="neither"):
        ZeroMQCommunicator(0, 2)


def test_an_endpoint_in_use_leaves_nothing_open(pair):
    first, _ = pair
    with pytest.raises(ZppError, match="in use") as caught:
        ZeroMQCommunicator(1, 2, bind=first.endpoint, connect="tcp://127.0.0.1:9")
    assert caught.value.exit_code is ExitCode.ADDRESS


def test_a_wait_that_times_out_names_what_was_awaited():
    with ZeroMQCommunicator(1, 3, connect="tcp://127.0.0.1:9", bind="tcp://127.0.0.1:*", timeout_s=0.1) as alone:
        with pytest.raises(LinkTimeout, match=r"Stage 1 waited 0.1 s for stage 0 \(tcp://127.0.0.1:9\) to send"):
            alone.recv_tensor_dict()
        with pytest.raises(LinkTimeout, match=r"for stage 2 .* to take message 0; it is not connected"):
            alone.send_tensor_dict({"n": 1})


def receive_once(address: str) -> None:
    """The other rank: receives one dict, and then no more."""
    with ZeroMQCommunicator(1, 2, connect=address, shared_memory=False) as second:
        second.recv_tensor_dict()
        time.sleep(60)


def test_a_send_that_runs_out_of_time_inside_a_tensor_closes_the_link():
    # Shared memory takes a whole tensor without the other rank's help; a socket does not.
    with ZeroMQCommunicator(0, 2, bind="tcp://127.0.0.1:*", timeout_s=30, shared_memory=False) as first:
        other = SPAWN.Process(target=receive_once, args=(first.endpoint,), daemon=True)
        other.start()
        first.send_tensor_dict({"n": 1})
        os.kill(other.pid, signal.SIGSTOP)
        first._timeout_s = 0.3
        with pytest.raises(LinkTimeout, match="take the bytes of message 1"):
            first.send_tensor_dict({"states": torch.ones(16_000_000)})
        with pytest.raises(LinkError, match="closed"):
            first.send_tensor_dict({"n": 1})
        other.kill()
        other.join()


def test_what_is_no_tensor_dict_is_refused_by_name():
    with (
        LinkSender("tcp://127.0.0.1:*", stage=0, peer=1) as sender,
        ZeroMQCommunicator(1, 2, connect=sender.endpoint, limits=Limits(max_tensors=1)) as second,
    ):
        sender.send(Kind.CONTROL, b"", timeout_s=10)
        with pytest.raises(LinkError, match="expected tensors of stage 0 and got control of stage 0"):
            second.recv_tensor_dict()
        sender.send(Kind.TENSORS, b"", source=5, timeout_s=10)
        with pytest.raises(LinkError, match="got tensors of stage 5"):
            second.recv_tensor_dict()
        sender.send(Kind.TENSORS, b"\x80\x04", timeout_s=10)
        with pytest.raises(WireError, match="Stage 1 refused a message from stage 0") as caught:
            second.recv_tensor_dict()
        assert caught.value.endpoint == sender.endpoint


def test_the_example_runs():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=60, check=True)
    assert "dtype=torch.bfloat16" in done.stdout
    assert "'token': 42" in done.stdout


def test_a_ring_with_keys_carries_dicts_and_refuses_another_ranks_keys():
    files = generate(2)
    with pytest.raises(ZppError, match="has no keys of stage 1"):
        ZeroMQCommunicator(1, 2, bind="tcp://0.0.0.0:*", keys=files[0])
    first_out = ZeroMQCommunicator(0, 2, bind="tcp://0.0.0.0:*", keys=files[0])
    last = ZeroMQCommunicator(
        1, 2, bind="tcp://0.0.0.0:*", connect=first_out.endpoint.replace("0.0.0.0", "127.0.0.1"), keys=files[1]
    )
    home = ZeroMQCommunicator(0, 2, connect=last.endpoint.replace("0.0.0.0", "127.0.0.1"), keys=files[0])
    with first_out, last, home:
        first_out.send_tensor_dict({"states": torch.arange(5)})
        last.send_tensor_dict(last.recv_tensor_dict())
        assert home.recv_tensor_dict()["states"].tolist() == [0, 1, 2, 3, 4]
