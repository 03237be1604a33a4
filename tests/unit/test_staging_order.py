# SPDX-License-Identifier: Apache-2.0
"""Staging on a simulated device: every access to memory is ordered, whatever the delays, and every value is right.

What each test would miss without an event is shown by leaving that event out.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import ROOT

torch = pytest.importorskip("torch")
sys.path.insert(0, str(ROOT / "scripts"))

from gpucheck.race_log import HOST, RaceLog  # noqa: E402
from gpucheck.stub_device import StubDevice, StubStream  # noqa: E402

from zpptool.engines.staging.receiver import StagedReceiver  # noqa: E402
from zpptool.engines.staging.sender import Arrival, StagedSender  # noqa: E402

pytestmark = pytest.mark.timeout(60)
STEPS = 12
DELAY_S = 0.002
ROWS, WIDTH = 6, 8


@pytest.fixture
def log() -> RaceLog:
    return RaceLog()


@pytest.fixture(params=range(3))
def device(request: pytest.FixtureRequest, log: RaceLog) -> Iterator[StubDevice]:
    made = StubDevice(computes_on_host=False, delay_s=DELAY_S, seed=request.param, log=log)
    yield made
    made.close()


def send_steps(device: StubDevice, log: RaceLog, in_flight: int = 3) -> list[tuple[int, list[float]]]:
    """Compute each step into the same output, and send it; the link holds each message for a while."""
    chance, arrived = random.Random(1), list[tuple[int, list[float]]]()
    sender, output = StagedSender(device, in_flight), torch.zeros(ROWS, WIDTH)

    def deliver(values: dict[str, Any]) -> Callable[[], None]:
        def released() -> None:
            time.sleep(chance.uniform(0, DELAY_S))
            log.access(HOST, "the link", reads=(values["hidden_states"],), writes=())
            arrived.append((values["step"], values["hidden_states"].unique().tolist()))

        return released

    for step in range(STEPS):
        device.compute(lambda step=step: output.fill_(step), writes=(output,))
        buffer = sender.reserve(30)
        assert buffer is not None
        sender.send(buffer, {"hidden_states": output[: 1 + step % ROWS], "step": step}, deliver, pytest.fail).wait()
    sender.close()
    return arrived


def test_outputs_are_copied_before_the_next_step_overwrites_them(device: StubDevice, log: RaceLog) -> None:
    assert send_steps(device, log) == [(step, [float(step)]) for step in range(STEPS)]
    assert log.races() == []


@pytest.mark.parametrize("left_out", ["the arrival", "the computation", "the wait of the sending thread"])
def test_an_event_that_is_left_out_of_a_send_is_found(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RaceLog()
    device = StubDevice(computes_on_host=False, delay_s=DELAY_S, log=log)
    if left_out == "the arrival":
        monkeypatch.setattr(Arrival, "wait", lambda _self: None)
    elif left_out == "the computation":
        current = device.current_stream()
        monkeypatch.setattr(StubStream, "wait_event", _wait_only_on(current))
    else:
        monkeypatch.setattr("gpucheck.stub_device.StubEvent.synchronize", lambda _self: None)
    send_steps(device, log)
    device.close()
    assert log.races() != []


def _wait_only_on(stream: object) -> Callable[[Any, Any], None]:
    real = StubStream.wait_event
    return lambda self, event: real(self, event) if self is stream else None


def receive_steps(device: StubDevice) -> list[list[list[float]]]:
    """Receive messages of several sizes, and compute with each: what the computations have read."""
    receiver, read = StagedReceiver(device, ROWS), []
    for step in range(STEPS):
        rows = 1 + step * 5 % ROWS
        message = {"hidden_states": torch.full((rows, WIDTH), float(step + 1)), "step": step}
        received = receiver.receive(message)
        assert received.values["step"] == received.padded["step"] == step
        assert received.values["hidden_states"].shape == (rows, WIDTH)
        buffer = received.padded["hidden_states"]
        device.compute(lambda buffer=buffer: read.append(buffer[:, 0].tolist()), reads=(buffer,))
    return read


def test_inputs_are_computed_with_before_their_buffer_is_used_again(device: StubDevice, log: RaceLog) -> None:
    read = receive_steps(device)
    device.close()
    assert read == [
        [float(step + 1)] * (1 + step * 5 % ROWS) + [0.0] * (ROWS - 1 - step * 5 % ROWS) for step in range(STEPS)
    ]
    assert log.races() == []


@pytest.mark.parametrize("left_out", ["the wait of the side stream", "the wait of the device", "the wait of the host"])
def test_an_event_that_is_left_out_of_a_receive_is_found(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RaceLog()
    device = StubDevice(computes_on_host=False, delay_s=DELAY_S, log=log)
    current, real = device.current_stream(), StubStream.wait_event
    if left_out == "the wait of the host":
        monkeypatch.setattr("gpucheck.stub_device.StubEvent.synchronize", lambda _self: None)
    else:
        keeps_current = left_out == "the wait of the side stream"
        monkeypatch.setattr(
            StubStream,
            "wait_event",
            lambda self, event: real(self, event) if (self is current) == keeps_current else None,
        )
    receive_steps(device)
    device.close()
    assert log.races() != []


def test_sending_waits_for_nothing_while_a_buffer_is_free(log: RaceLog) -> None:
    device = StubDevice(computes_on_host=False, delay_s=0, log=log)
    sender, gate = StagedSender(device, 2), threading.Event()
    for _ in range(2):
        buffer = sender.reserve(0)
        assert buffer is not None
        sender.send(buffer, {"a": torch.ones(2)}, lambda _values: lambda: gate.wait(30) and None, pytest.fail).wait()
    assert sender.reserve(0.05) is None  # what is outstanding is bounded
    gate.set()
    assert sender.reserve(30) is not None
    sender.close()
    device.close()


def test_memory_of_a_send_that_failed_is_not_used_again() -> None:
    device = StubDevice(computes_on_host=True, delay_s=0)
    sender, faults, memory = StagedSender(device, 1), [], []

    def deliver(values: dict[str, Any]) -> Callable[[], None]:
        memory.append(values["a"])
        if len(memory) == 1:
            raise OSError("the link is lost")
        return lambda: None

    for _ in range(3):
        buffer = sender.reserve(30)
        assert buffer is not None
        sender.send(buffer, {"a": torch.ones(2)}, deliver, faults.append).wait()
    sender.close()
    device.close()
    assert [str(fault) for fault in faults] == ["the link is lost"]
    first, second, third = (tensor.data_ptr() for tensor in memory)
    assert first != second == third


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.bool])
@pytest.mark.parametrize("shape", [(5, 8), (0, 8), (), (1, 3, 7)])
def test_bits_and_shapes_are_kept_both_ways(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    device = StubDevice(computes_on_host=True, delay_s=0)
    sent, sender, original = [], StagedSender(device, 1), torch.randn(shape).to(dtype)
    buffer = sender.reserve(0)
    assert buffer is not None
    values = {"odd": torch.ones(3, dtype=torch.uint8), "hidden_states": original, "count": 5}
    sender.send(buffer, values, lambda host: (sent.append({**host}), lambda: None)[1], pytest.fail).wait()
    sender.close()
    received = StagedReceiver(device, None).receive(sent[0]).values
    device.close()
    for copied in (sent[0], received):
        assert copied["count"] == 5
        assert copied["hidden_states"].shape == original.shape
        assert copied["hidden_states"].dtype == dtype
        assert copied["hidden_states"].reshape(-1).view(torch.uint8).equal(original.reshape(-1).view(torch.uint8))


def test_other_tensors_in_the_same_buffer_have_zeros_after_their_rows_too() -> None:
    device = StubDevice(computes_on_host=True, delay_s=0)
    receiver = StagedReceiver(device, ROWS)
    for _ in range(2):
        receiver.receive({"hidden_states": torch.full((ROWS, WIDTH), torch.nan)})
        receiver.receive({"hidden_states": torch.full((ROWS, WIDTH), torch.nan)})
        padded = receiver.receive({"residual": torch.ones(1, WIDTH)}).padded["residual"]
        device.new_event().synchronize()
        receiver.receive({"hidden_states": torch.ones(1, WIDTH)})
        assert padded[0].tolist() == [1.0] * WIDTH
        assert padded[1:].unique().tolist() == [0.0]
    device.close()
