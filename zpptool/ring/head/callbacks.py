# SPDX-License-Identifier: Apache-2.0
"""What the head's engine has called when something happens in the ring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zpptool.errors import ZppError, usage_error
from zpptool.partition import Partition
from zpptool.ring.messages import StageFacts


def _ignore_fault(_fault: ZppError) -> None:
    pass


def _ignore_address(_address: str) -> None:
    pass


def _amend_nothing(_stages: tuple[StageFacts, ...]) -> Mapping[str, bytes]:
    return {}


def _refuse_partition(_partition: Partition) -> tuple[int, ...]:
    raise usage_error("the layers of this pipeline's stages cannot move while it runs", "Stop it and start it anew.")


@dataclass(slots=True)
class HeadCallbacks:
    """Set by the engine before the ring is gathered. All but `prepare_partition` run on the head's receiving thread.

    Attributes:
        on_fault: called once with the cause when the pipeline breaks after it was gathered.
        on_moved: called with the address from which the last stage sends from now on.
        amend_setup: called with the admitted stages before they are set up; returns new payloads for set-up calls, by
            method.
        prepare_partition: called before layers move; returns the stages that have to restart, or raises `ZppError`.
    """

    on_fault: Callable[[ZppError], None] = _ignore_fault
    on_moved: Callable[[str], None] = _ignore_address
    amend_setup: Callable[[tuple[StageFacts, ...]], Mapping[str, bytes]] = _amend_nothing
    prepare_partition: Callable[[Partition], tuple[int, ...]] = _refuse_partition
