# SPDX-License-Identifier: Apache-2.0
"""vLLM's pipeline group over zpptool's wire, in place of NCCL or gloo.

A worker gets its place in the pipeline from its pipeline group, sends the tensors of a step to the next stage and
receives those of the stage before. Both calls return at once. A send keeps its buffers until its handle is waited for.
A receive takes place when the worker first reads the tensors, so that the worker prepares its inputs while the stage
before still computes.

A worker may pad its steps, each in its own way: for CUDA graphs, or for the ranks of a stage. So only the rows of
scheduled tokens are sent, and on a device with memory of its own a worker gets buffers with as many rows as its largest
step, of which it reads as many as it wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.staging.exchange import TensorExchange
from zpptool.engines.staging.padded_rows import PaddedRows
from zpptool.engines.staging.receiver import Received
from zpptool.engines.vllm.compat.process_groups import tensor_parallel_group
from zpptool.errors import ZppError
from zpptool.ring.stage.node import StageNode


class PipelinePlace:
    """A rank's place in the pipeline, with the attributes of vLLM's `GroupCoordinator` that workers read.

    Args:
        spec: the stage.
        rank: its tensor-parallel rank.

    Attributes:
        max_rows: how many rows the largest step of this stage has; None until it is known.
    """

    def __init__(self, spec: StageSpec, rank: int) -> None:
        self._alone: Any = None
        self._scheduled_rows: int | None = None
        self.max_rows: int | None = None
        size, stage, last = spec.tensor_parallel_size, spec.stage, spec.num_stages - 1
        self.tensor_parallel_size = size
        self.world_size = spec.num_stages
        self.rank_in_group = stage
        self.ranks = [size * place + rank for place in range(spec.num_stages)]
        self.rank = self.ranks[stage]
        self.first_rank, self.last_rank = self.ranks[0], self.ranks[-1]
        self.is_first_rank = stage == 0
        self.is_last_rank = stage == last
        self.prev_rank = self.ranks[(stage - 1) % spec.num_stages]
        self.next_rank = self.ranks[(stage + 1) % spec.num_stages]
        self.device: torch.device | None = None

    def adopt(self, alone: Any, device: torch.device | None) -> None:
        """Take over the group of one stage that vLLM built. Attributes that do not concern other stages (graph capture,
        for example) are looked up there."""
        self._alone = alone
        self.device = device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__dict__.get("_alone") is None:
            raise AttributeError(name)
        return getattr(self._alone, name)

    @contextmanager
    def step_of(self, rows: int) -> Iterator[None]:
        """Within this context the worker does a step of so many tokens; what it sends has as many rows."""
        self._scheduled_rows = rows
        try:
            yield
        finally:
            self._scheduled_rows = None

    def destroy(self) -> None:
        """Destroy the group of one stage. The ring is closed by the worker's main loop, not by vLLM."""
        if self._alone is not None:
            self._alone.destroy()

    def _refuse_other(self, rank: int | None, neighbour: int) -> None:
        if rank not in (None, neighbour):
            raise ZppError(f"stage {self.rank_in_group} talks to its neighbours only, not to rank {rank}")


class WirePipelineGroup(PipelinePlace):
    """The group of rank 0 of a stage. It sends and receives, and broadcasts what it received to the other ranks.

    Args:
        node: this stage's place in the ring.
        spec: the stage.
    """

    def __init__(self, node: StageNode, spec: StageSpec) -> None:
        super().__init__(spec, 0)
        self._node = node
        self._in_flight = spec.num_stages + 1  # the head keeps at most one step a stage in flight
        self._exchange: TensorExchange | None = None

    def adopt(self, alone: Any, device: torch.device | None) -> None:
        """Take over the group of one stage, and set up staging where the device has memory of its own."""
        super().adopt(alone, device)
        self._exchange = TensorExchange(self._node, device, in_flight=self._in_flight, rows=self.max_rows)

    def destroy(self) -> None:
        """Destroy the group after pending sends have completed."""
        if self._exchange is not None:
            self._exchange.close()
        super().destroy()

    def isend_tensor_dict(
        self,
        tensor_dict: dict[str, torch.Tensor | Any],
        dst: int | None = None,
        all_gather_group: Any = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> list[SendHandle]:
        """Send to the next stage.

        Returns:
            two handles: vLLM skips the first, which is that of the metadata, and waits for the others before it writes
            to the tensors' memory again.
        """
        self._refuse_other(dst, (self.rank_in_group + 1) % self.world_size)
        handle = SendHandle(self._connected.send(first_rows(tensor_dict, self._scheduled_rows)))
        return [handle, handle]

    def take(self) -> Received:
        """Wait for the tensors of the stage before, and return them on this stage's device.

        Raises:
            ZppError: (STAGE) they did not arrive in time, or the stage before was lost.
        """
        return self._connected.take()

    @property
    def _connected(self) -> TensorExchange:
        assert self._exchange is not None, "the worker has not initialised its device"
        return self._exchange

    def irecv_tensor_dict(
        self,
        src: int | None = None,
        all_gather_group: Any = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> tuple[dict[str, torch.Tensor | Any], list[ReceiveHandle], list[Callable[[], None]]]:
        """Receive from the stage before.

        Returns:
            a dict that is filled when its handle is waited for, that handle, and no postprocessing.
        """
        self._refuse_other(src, (self.rank_in_group - 1) % self.world_size)
        received: dict[str, torch.Tensor | Any] = {}
        return received, [ReceiveHandle(self, received)], []


class RankPipelineGroup(PipelinePlace):
    """The group of another rank of a stage. It sends nothing, because rank 0 sends the same tensors, and receives what
    rank 0 broadcasts."""

    def adopt(self, alone: Any, device: torch.device | None) -> None:
        """Take over the group of one stage."""
        super().adopt(alone, device)
        self._padded = PaddedRows(device, self.max_rows)

    def isend_tensor_dict(self, tensor_dict: dict[str, torch.Tensor | Any], **_options: Any) -> list[SendHandle]:
        """Send nothing; returns no handles."""
        return []

    def irecv_tensor_dict(
        self, **_options: Any
    ) -> tuple[dict[str, torch.Tensor | Any], list[SharedHandle], list[Callable[[], None]]]:
        """As `WirePipelineGroup.irecv_tensor_dict`, from rank 0."""
        received: dict[str, torch.Tensor | Any] = {}
        return received, [SharedHandle(self._padded, received)], []


def first_rows(values: Mapping[str, Any], rows: int | None) -> dict[str, Any]:
    """The values with the first rows of their tensors: those after them are padding. With None they are all kept."""
    return {
        name: value[:rows] if isinstance(value, torch.Tensor) and value.dim() else value
        for name, value in values.items()
    }


class SendHandle:
    """A send in progress."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait

    def wait(self) -> None:
        """Wait until the tensors' memory may be written again. Where sends are staged the device waits, and this thread
        does not."""
        self._wait()


class ReceiveHandle:
    """A receive that takes place when its tensors are needed."""

    def __init__(self, group: WirePipelineGroup, into: dict[str, torch.Tensor | Any]) -> None:
        self._group = group
        self._into = into

    def wait(self) -> None:
        """Wait for the tensors of the stage before.

        Raises:
            ZppError: (STAGE) they did not arrive in time, or the stage before was lost.
        """
        received = self._group.take()
        if self._group.tensor_parallel_size > 1:
            tensor_parallel_group().broadcast_tensor_dict(received.values, src=0)
        self._into.update(received.padded)


class SharedHandle:
    """A receive on another rank than rank 0."""

    def __init__(self, padded: PaddedRows, into: dict[str, torch.Tensor | Any]) -> None:
        self._padded = padded
        self._into = into

    def wait(self) -> None:
        """Wait for the tensors that rank 0 has received."""
        self._into.update(self._padded.of(tensor_parallel_group().broadcast_tensor_dict(src=0)))
