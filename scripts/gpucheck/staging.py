# SPDX-License-Identifier: Apache-2.0
"""Staging on a device's own streams: whether values are right while the device is behind, and what it costs.

On a card, computations are queued behind long multiplications, so a copy that is not ordered reads or overwrites the
wrong values. On the CPU the simulated device also proves the order of every access.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from gpucheck.check import Bench, Failed
from gpucheck.race_log import HOST, RaceLog
from gpucheck.stub_device import StubDevice
from zpptool.engines.staging.device import Device, device_apart
from zpptool.engines.staging.receiver import StagedReceiver
from zpptool.engines.staging.sender import StagedSender

STEPS = 40
IN_FLIGHT = 3
STUB_DELAY_S = 0.001


class Place(Protocol):
    """Where the check computes.

    Attributes:
        device: what is staged through.
        rows, width: of the tensors of a step.
    """

    device: Device
    rows: int
    width: int

    def zeros(self) -> torch.Tensor:
        """The output of a step."""
        ...

    def compute(self, work: Callable[[], object], *, reads: tuple[Any, ...] = (), writes: tuple[Any, ...] = ()) -> None:
        """Queue a computation that takes its time."""
        ...

    def finish(self) -> None:
        """Wait for all computations."""
        ...


class OnStub:
    """The simulated device."""

    rows, width = 16, 64

    def __init__(self) -> None:
        self.log = RaceLog()
        self.device = StubDevice(computes_on_host=False, delay_s=STUB_DELAY_S, log=self.log)
        self.compute = self.device.compute

    def zeros(self) -> torch.Tensor:
        return torch.zeros(self.rows, self.width)

    def finish(self) -> None:
        self.device.close()
        if races := self.log.races():
            raise Failed(f"{len(races)} accesses are not ordered, first: {races[0]}")


class OnCard:
    """A CUDA card."""

    rows, width = 2048, 4096

    def __init__(self) -> None:
        device = device_apart(torch.device("cuda"))
        if device is None:
            raise Failed("torch has no streams for cuda")
        self.device = device
        self._busy = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)

    def zeros(self) -> torch.Tensor:
        return torch.zeros(self.rows, self.width, device="cuda", dtype=torch.bfloat16)

    def compute(self, work: Callable[[], object], **_accesses: object) -> None:
        for _ in range(8):  # some milliseconds
            self._busy @ self._busy
        work()

    def finish(self) -> None:
        torch.cuda.synchronize()
        del self._busy
        torch.cuda.empty_cache()  # for the checks that follow, in other processes


def check_staging(bench: Bench) -> dict[str, Any]:
    """Send and receive many steps, and compare every value."""
    place: Place = OnCard() if bench.machine.device == "cuda" else OnStub()
    measures = {**_send(place), **_receive(place)}
    place.finish()
    return measures


def _send(place: Place) -> dict[str, Any]:
    """Every step is computed into the same output; what arrives has to be that step's."""
    arrived: list[tuple[int, list[float]]] = []
    faults: list[Exception] = []
    sender, output = StagedSender(place.device, IN_FLIGHT), place.zeros()
    log = getattr(place, "log", None)

    def deliver(values: dict[str, Any]) -> Callable[[], None]:
        if log is not None:
            log.access(HOST, "the link", reads=(values["hidden_states"],), writes=())
        arrived.append((values["step"], values["hidden_states"].unique().tolist()))
        return lambda: None

    in_send_s = 0.0
    for step in range(STEPS):
        place.compute(lambda step=step: output.fill_(step), writes=(output,))
        buffer = sender.reserve(60)
        if buffer is None:
            raise Failed("no host buffer became free in 60 s")
        began = time.perf_counter()
        sender.send(buffer, {"hidden_states": output, "step": step}, deliver, faults.append).wait()
        in_send_s += time.perf_counter() - began
    sender.close()
    if faults:
        raise faults[0]
    wrong = [got for got, expected in zip(arrived, range(STEPS), strict=True) if got != (expected, [float(expected)])]
    if wrong:
        raise Failed(f"{len(wrong)} of {STEPS} outputs arrived with values of another step, first: {wrong[0]}")
    return {"send_call_ms": round(in_send_s / STEPS * 1000, 3), "output_bytes": output.nbytes}


def _receive(place: Place) -> dict[str, Any]:
    """Every step's input is computed with; what was computed has to be of that step, with zeros after its rows."""
    receiver = StagedReceiver(place.device, place.rows)
    seen: list[torch.Tensor] = []
    in_receive_s = 0.0
    for step in range(1, STEPS + 1):
        rows = 1 + step * 7 % place.rows
        message = torch.full((rows, place.width), float(step), dtype=place.zeros().dtype)
        began = time.perf_counter()
        padded = receiver.receive({"hidden_states": message}).padded["hidden_states"]
        in_receive_s += time.perf_counter() - began
        place.compute(lambda padded=padded: seen.append(padded[:, 0].clone()), reads=(padded,))
    while len(seen) < STEPS:
        time.sleep(0.001)
    for step, column in enumerate(seen, start=1):
        rows = 1 + step * 7 % place.rows
        if column[:rows].unique().tolist() != [float(step)] or bool(column[rows:].any()):
            raise Failed(f"input {step} was computed with the values of another step")
    return {"receive_call_ms": round(in_receive_s / STEPS * 1000, 3)}
