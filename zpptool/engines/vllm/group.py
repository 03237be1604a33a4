# SPDX-License-Identifier: Apache-2.0
"""The pipeline group over the wire: what a vLLM worker talks to instead of NCCL or gloo.

A worker asks its pipeline group where it stands, sends the tensors of a step to the next stage and receives those of
the stage before. Both return at once: the send keeps its buffers until its handle is waited for, and the receive is
done when the worker first looks at the tensors, so that it prepares its inputs while the stage before still computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from zpptool.errors import ZppError
from zpptool.pipeline.ring.node import StageNode
from zpptool.wire import tensors


class WirePipelineGroup:
    """One stage's view of the pipeline, in the shape of vLLM's `GroupCoordinator`.

    Args:
        node: this stage's place in the ring.
        num_stages: how many stages there are.
    """

    def __init__(self, node: StageNode, num_stages: int) -> None:
        self._node = node
        self._alone: Any = None
        self.world_size = num_stages
        self.ranks = list(range(num_stages))
        self.rank = self.rank_in_group = node.stage
        self.first_rank, self.last_rank = 0, num_stages - 1
        self.is_first_rank = node.stage == 0
        self.is_last_rank = node.stage == num_stages - 1
        self.prev_rank = (node.stage - 1) % num_stages
        self.next_rank = (node.stage + 1) % num_stages
        self.device: torch.device | None = None

    def adopt(self, alone: Any, device: torch.device | None) -> None:
        """Take over the group of one that vLLM built: what is no business between stages (capturing a graph, say) is
        asked of it."""
        self._alone = alone
        self.device = device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__dict__.get("_alone") is None:
            raise AttributeError(name)
        return getattr(self._alone, name)

    def isend_tensor_dict(
        self,
        tensor_dict: dict[str, torch.Tensor | Any],
        dst: int | None = None,
        all_gather_group: Any = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> list[SendHandle]:
        """Send to the next stage.

        Returns:
            two handles, as vLLM expects: it skips the first (of the metadata) and waits for the rest before the
            tensors' memory is written again.
        """
        self._refuse_other(dst, self.next_rank)
        packed = tensors.pack(tensor_dict)
        handle = SendHandle(self._node.send_tensors(packed.header, packed.frames))
        return [handle, handle]

    def irecv_tensor_dict(
        self,
        src: int | None = None,
        all_gather_group: Any = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> tuple[dict[str, torch.Tensor | Any], list[ReceiveHandle], list[Callable[[], None]]]:
        """Receive from the stage before.

        Returns:
            a dict that is filled when its handle is waited for, that handle, and nothing to do afterwards.
        """
        self._refuse_other(src, self.prev_rank)
        received: dict[str, torch.Tensor | Any] = {}
        return received, [ReceiveHandle(self._node, received, self.device)], []

    def destroy(self) -> None:
        """The ring is closed by the worker's main loop, not by vLLM; the group of one goes."""
        if self._alone is not None:
            self._alone.destroy()

    def _refuse_other(self, rank: int | None, neighbour: int) -> None:
        if rank not in (None, neighbour):
            raise ZppError(f"stage {self.rank} talks to stage {neighbour} only, not to stage {rank}")


class SendHandle:
    """A send under way."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait

    def wait(self) -> None:
        """Return when the tensors' memory may be written again."""
        self._wait()


class ReceiveHandle:
    """A receive that is done when somebody wants its tensors."""

    def __init__(self, node: StageNode, into: dict[str, torch.Tensor | Any], device: torch.device | None) -> None:
        self._node = node
        self._into = into
        self._device = device

    def wait(self) -> None:
        """Wait for the tensors of the stage before.

        Raises:
            ZppError: (STAGE) they did not come in time, or the stage before was lost.
        """
        self._into.update(self._node.unpack(self._node.receive_tensors(), self._device))
