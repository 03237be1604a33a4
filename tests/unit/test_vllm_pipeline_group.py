# SPDX-License-Identifier: Apache-2.0
"""Stages that pad their steps differently fit together: two groups of vLLM's interface with a simulated device each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("vllm")
sys.path.insert(0, str(ROOT / "scripts"))
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(60)]

import torch  # noqa: E402
from gpucheck.stub_device import StubDevice  # noqa: E402

from zpptool.config.engine_kind import Engine  # noqa: E402
from zpptool.config.stage_spec import StageSpec  # noqa: E402
from zpptool.engines.staging import device as devices  # noqa: E402
from zpptool.engines.vllm.stage.pipeline_group import WirePipelineGroup, first_rows  # noqa: E402
from zpptool.ring.heartbeat import Pulse  # noqa: E402
from zpptool.wire.message import tensors  # noqa: E402

MAX_ROWS, WIDTH = 8, 4
CUDA = torch.device("cuda")


class Wire:
    """What two neighbours' groups need of their nodes: messages go straight across."""

    step_timeout_s = 30.0

    def __init__(self) -> None:
        self.pulse = Pulse()
        self.messages: list[tuple[bytes, list[bytes]]] = []

    def order(self) -> None:
        return None

    def send_tensors(self, header: bytes, frames: Sequence[Any], _order: object) -> Callable[[], None]:
        self.messages.append((header, [bytes(frame) for frame in frames]))
        return lambda: None

    def receive_tensors(self) -> tuple[bytes, list[bytes]]:
        return self.messages.pop(0)

    def unpack(self, message: tuple[bytes, list[bytes]]) -> dict[str, Any]:
        return tensors.unpack(*message)

    def sending_failed(self, _order: object, fault: Exception) -> None:
        raise AssertionError(fault)


@pytest.fixture(params=["both on a GPU", "a CPU before a GPU", "a GPU before a CPU"])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Two groups, each of which computes on the host."""
    made: list[StubDevice] = []

    def apart(device: torch.device) -> StubDevice | None:
        if device.type == "cpu":
            return None
        made.append(StubDevice(computes_on_host=True, delay_s=0.002))
        return made[-1]

    monkeypatch.setattr(devices, "device_apart", apart)
    wire, kinds = Wire(), {"both on a GPU": (CUDA, CUDA), "a CPU before a GPU": (torch.device("cpu"), CUDA)}
    groups = []
    for stage, device in enumerate(kinds.get(request.param, (CUDA, torch.device("cpu")))):
        spec = StageSpec(Engine.VLLM, "model", ((0, 1), (1, 2)), stage, "", "")
        group = WirePipelineGroup(wire, spec)
        group.max_rows = MAX_ROWS
        group.adopt(SimpleNamespace(destroy=lambda: None), device)
        groups.append(group)
    yield SimpleNamespace(first=groups[0], second=groups[1], wire=wire, staged_receiver=device.type != "cpu")
    for group in groups:
        group.destroy()
    for device in made:
        device.close()


def test_only_scheduled_rows_are_sent_and_any_padding_can_be_read(pair: SimpleNamespace) -> None:
    output = torch.zeros(MAX_ROWS, WIDTH)
    for step, (rows, padded) in enumerate([(3, 4), (8, 8), (1, 2), (5, 8)], start=1):
        output.fill_(torch.nan)
        output[:rows] = step
        with pair.first.step_of(rows):
            *_, handle = pair.first.isend_tensor_dict({"hidden_states": output[:padded], "residual": output[:padded]})
        handle.wait()
        output.fill_(-1.0)
        while not pair.wire.messages:
            pass
        assert [len(frame) for frame in pair.wire.messages[0][1]] == [_joined_bytes(rows)]
        received, (receiving,), _ = pair.second.irecv_tensor_dict()
        receiving.wait()
        for name in ("hidden_states", "residual"):
            assert received[name][:rows].tolist() == [[float(step)] * WIDTH] * rows
            if pair.staged_receiver:
                assert received[name].shape == (MAX_ROWS, WIDTH)
                assert received[name][rows:].tolist() == [[0.0] * WIDTH] * (MAX_ROWS - rows)


def _joined_bytes(rows: int) -> int:
    """Two tensors in one frame, the second at a multiple of 64 bytes."""
    one = rows * WIDTH * 4
    return -(-one // 64) * 64 + one


def test_without_a_step_everything_is_sent() -> None:
    values = {"a": torch.ones(4, 2), "b": torch.tensor(1.0), "c": 3}
    assert first_rows(values, None)["a"].shape == (4, 2)
    kept = first_rows(values, 3)
    assert (kept["a"].shape, kept["b"].shape, kept["c"]) == ((3, 2), (), 3)
