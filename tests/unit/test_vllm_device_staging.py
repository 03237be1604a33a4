# SPDX-License-Identifier: Apache-2.0
"""Staging through host memory, with the CPU's streams and events: order, bits, errors, and when memory may be
reused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(60)]

import torch  # noqa: E402

from zpptool.engines.vllm.stage.device_staging import DeviceStaging  # noqa: E402

CPU = torch.device("cpu")


def test_sent_tensors_may_be_overwritten_at_once_and_keep_their_order() -> None:
    staging, gate, sent = DeviceStaging(CPU), threading.Event(), []

    def send(values: dict[str, Any]) -> Callable[[], None]:
        gate.wait(30)
        sent.append(values)
        return lambda: None

    buffer = torch.zeros(4, 3)
    pending = []
    for step in range(5):
        buffer.fill_(step)
        pending.append(staging.send({"hidden_states": buffer, "step": step}, send))
    assert not any(one.done() for one in pending)  # sending did not block
    gate.set()
    for one in pending:
        one.result(30)
    staging.close()
    assert [values["step"] for values in sent] == list(range(5))
    assert [values["hidden_states"].tolist() for values in sent] == [[[float(step)] * 3] * 4 for step in range(5)]


def test_a_send_is_done_only_when_the_link_has_released_the_memory() -> None:
    staging, free = DeviceStaging(CPU), threading.Event()
    pending = staging.send({"a": torch.ones(2)}, lambda _values: lambda: free.wait(30) and None)
    assert not pending.done()
    free.set()
    pending.result(30)
    staging.close()


def test_a_send_that_fails_is_reported_to_the_waiting_thread() -> None:
    def send(_values: dict[str, Any]) -> Callable[[], None]:
        raise OSError("the link is gone")

    staging = DeviceStaging(CPU)
    with pytest.raises(OSError, match="the link is gone"):
        staging.send({"a": torch.ones(2)}, send).result(30)
    staging.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_received_tensors_keep_their_bits(dtype: torch.dtype) -> None:
    staging = DeviceStaging(CPU)
    received = {"hidden_states": torch.randn(5, 8).to(dtype), "count": 5}
    on_device = staging.receive(received)
    staging.close()
    assert on_device["count"] == 5
    assert on_device["hidden_states"].view(torch.uint8).equal(received["hidden_states"].view(torch.uint8))
