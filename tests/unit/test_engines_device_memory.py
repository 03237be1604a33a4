# SPDX-License-Identifier: Apache-2.0
"""A stage that waits for the memory of a process that has ended: on a device whose readings are made up."""

from __future__ import annotations

import logging
from itertools import chain, repeat

import pytest

torch = pytest.importorskip("torch")

from zpptool.engines import device_memory  # noqa: E402
from zpptool.engines.device_memory import (  # noqa: E402
    GIB,
    LONGEST_S,
    POLL_S,
    STILL_S,
    FreeMemory,
    Verdict,
    await_device_memory,
    await_free_memory,
    judge,
)


def looks(*pairs: tuple[float, int]) -> list[FreeMemory]:
    return [FreeMemory(*pair) for pair in pairs]


def test_enough_memory_is_never_waited_for() -> None:
    assert judge(10, looks((0, 10))) is Verdict.LOAD
    assert judge(10, looks((0, 3), (LONGEST_S + 1, 10))) is Verdict.LOAD


def test_memory_that_becomes_free_is_waited_for_and_memory_that_does_not_is_not() -> None:
    assert judge(10, looks((0, 3))) is Verdict.WAIT
    assert judge(10, looks((0, 3), (STILL_S - 0.1, 3))) is Verdict.WAIT
    assert judge(10, looks((0, 3), (STILL_S, 3))) is Verdict.GIVE_UP
    assert judge(10, looks((0, 3), (10, 5), (STILL_S + 5, 5))) is Verdict.WAIT
    assert judge(10, looks((0, 3), (10, 5), (STILL_S + 10, 5))) is Verdict.GIVE_UP
    assert judge(10, looks((0, 5), (10, 3), (STILL_S, 3))) is Verdict.GIVE_UP  # it shrinks: another process grows
    growing = looks(*((float(second), second) for second in range(int(LONGEST_S) + 1)))
    assert judge(1000, growing[:-1]) is Verdict.WAIT
    assert judge(1000, growing) is Verdict.GIVE_UP


class Device:
    """A clock that a wait advances, and the readings of a device in their order."""

    def __init__(self, *free: int) -> None:
        self._free = chain(free, repeat(free[-1]))
        self.now_s = 0.0

    def read(self) -> int:
        return next(self._free)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def waited(device: Device, needed: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a wait logs."""
    log = logging.getLogger("zpptool.test")
    with caplog.at_level(logging.INFO, logger="zpptool.test"):
        await_free_memory(needed, device.read, log, clock=lambda: device.now_s, sleep=device.sleep)
    return [record.getMessage() for record in caplog.records]


def test_a_new_stage_loads_as_soon_as_the_dead_ones_memory_is_free(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(3 * GIB, 3 * GIB, 20 * GIB, 37 * GIB)
    assert waited(device, 36 * GIB, caplog) == [
        "waiting for memory of the device: 3.0 GiB are free and 36.0 GiB are needed; a process that has ended may still"
        " hold the rest",
        "the memory of the device is free after 1.5 s",
    ]
    assert device.now_s == 3 * POLL_S


def test_a_wait_for_memory_that_another_process_keeps_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(3 * GIB)
    assert waited(device, 36 * GIB, caplog)[1:] == [
        "after 15.0 s only 3.0 GiB of the device's memory are free: another process has the rest"
    ]
    assert device.now_s == STILL_S


def test_without_a_need_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert waited(Device(40 * GIB), 36 * GIB, caplog) == []


def test_a_share_of_the_device_is_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free, log = iter([10, 10, 80]), logging.getLogger("zpptool.test")
    reads: list[object] = []

    class Module:
        @staticmethod
        def mem_get_info(device: object) -> tuple[int, int]:
            reads.append(device)
            return next(free) * GIB, 80 * GIB

    monkeypatch.setattr(torch, "get_device_module", lambda _device: Module)
    monkeypatch.setattr(device_memory, "POLL_S", 0.001)
    with caplog.at_level(logging.INFO, logger="zpptool.test"):
        await_device_memory(torch.device("cuda", 1), lambda memory: memory.total // 2, log)
    assert reads == [torch.device("cuda", 1)] * 3
    assert "10.0 GiB are free and 40.0 GiB are needed" in caplog.text
    await_device_memory(torch.device("cpu"), lambda _memory: pytest.fail("a CPU is not asked"), log)
