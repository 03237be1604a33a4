# SPDX-License-Identifier: Apache-2.0
"""A stage's tensors to the next stage, and from the stage before: the same for both engines and for every device.

On a CPU a message is sent from the outputs' own memory. On a device with memory of its own, outputs and inputs are
staged through host memory while the device computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from zpptool.deadline import Deadline
from zpptool.engines.staging import device as devices
from zpptool.engines.staging.receiver import Received, StagedReceiver
from zpptool.engines.staging.sender import HostBuffer, StagedSender
from zpptool.ring.loop_times import Rest
from zpptool.ring.stage.node import StageNode
from zpptool.ring.stage.order import SendOrder
from zpptool.wire.message import tensors

POLL_S = 0.2
"""How long, in seconds, a wait for a free buffer goes without a check whether the epoch is over."""


class TensorExchange:
    """Sends and receives the tensors of one stage. Used by the main thread.

    Args:
        node: the stage's place in the ring.
        device: where the stage computes.
        in_flight: how many sends may be outstanding where they are staged.
        rows: the largest number of rows of a step; None where every message has its own shapes and nothing is padded.
    """

    def __init__(
        self, node: StageNode, device: torch.device | None, *, in_flight: int, rows: int | None = None
    ) -> None:
        self._node = node
        self._sender: StagedSender | None = None
        self._receiver: StagedReceiver | None = None
        apart = devices.device_apart(device)
        if apart is not None:
            self._sender = StagedSender(apart, in_flight)
            self._receiver = StagedReceiver(apart, rows)

    def send(self, values: Mapping[str, Any]) -> Callable[[], None]:
        """Send values to the next stage, as those of the call that is being done.

        Returns:
            a function to call before the tensors' memory is written again. Where the sends are staged it makes the
            device wait; this thread waits on a CPU alone, until the link has released the memory.

        Raises:
            StaleEpoch: the epoch of the call that is being done is over.
            ZppError: (STAGE) the next stage does not accept them in time.
        """
        order = self._node.order()
        if self._sender is None:
            return self._deliver(order, values)
        buffer = self._free_buffer(self._sender, order)
        return self._sender.send(
            buffer, values,
            lambda host: self._deliver(order, host), lambda fault: self._node.sending_failed(order, fault),
        ).wait  # fmt: skip

    def take(self) -> Received:
        """Wait for the values of the stage before, and return them on this stage's device.

        Raises:
            StaleEpoch: the epoch of the call that is being done is over.
            ZppError: (STAGE) they did not arrive in time, or that stage was lost.
        """
        values = self._node.unpack(self._node.receive_tensors())
        return Received(values, values) if self._receiver is None else self._receiver.receive(values)

    def close(self) -> None:
        """Complete pending sends."""
        if self._sender is not None:
            self._sender.close()

    def _deliver(self, order: SendOrder, values: Mapping[str, Any]) -> Callable[[], None]:
        packed = tensors.pack(values)
        return self._node.send_tensors(packed.header, packed.frames, order)

    def _free_buffer(self, sender: StagedSender, order: SendOrder) -> HostBuffer:
        """A buffer for one send. There is one, unless the next stage does not accept what was sent before."""
        deadline = Deadline(self._node.step_timeout_s)
        with self._node.pulse.at_rest(Rest.SEND):
            while (buffer := sender.reserve(min(POLL_S, deadline.remaining_s()))) is None:
                self._node.raise_if_over(order)
                if not deadline.remaining_s():
                    raise self._node.not_accepted(deadline)
        return buffer
