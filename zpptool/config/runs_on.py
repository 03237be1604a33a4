# SPDX-License-Identifier: Apache-2.0
"""What each stage of a plan runs on: its device, and for deployments its container image, memory and processors.

None of it has to agree between stages, so the digest of a plan leaves it out: a deployment can give one stage more
memory, and no other stage has to be started again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from zpptool.config.tensor_parallel import sizes_of_stages
from zpptool.document import Count
from zpptool.errors import usage_error
from zpptool.file_names import holds_control

AUTO = "auto"
MAX_MEMORY_GIB = 1 << 20
_DEVICE = re.compile(r"auto|(cpu|cuda|xpu|mps)(:\d{1,3})?")
_LONGEST_IMAGE = 512

_T = TypeVar("_T")


class RunsOn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What one stage runs on.

    Attributes:
        device: a torch device; `auto` where --device decides when the stage is started.
        image: the container image; empty for the one that `deploy --image` names.
        memory_gib: the stage's host memory in GiB; 0 for an estimate from its weights.
        cpus: its processors; 0 for the default of the deployment.
    """

    device: str = AUTO
    image: str = ""
    memory_gib: Count = 0
    cpus: Count = 0


UNDECIDED = RunsOn()
"""Nothing is decided. A plan's file and digest leave out exactly this object."""


@dataclass(frozen=True)
class StageWishes:
    """What a user asks of each stage of a plan: every item has one value for all stages, or one a stage.

    Attributes:
        tensor_parallel_sizes: how many devices compute the stage together.
        devices, images, memory_gib, cpus: as in `RunsOn`.
    """

    tensor_parallel_sizes: tuple[int, ...] = (1,)
    devices: tuple[str, ...] = (AUTO,)
    images: tuple[str, ...] = ("",)
    memory_gib: tuple[int, ...] = (0,)
    cpus: tuple[int, ...] = (0,)

    def sizes(self, num_stages: int) -> tuple[int, ...]:
        """The tensor-parallel size of each stage; raises ZppError (USAGE) for another number of them."""
        return sizes_of_stages(self.tensor_parallel_sizes, num_stages)

    def places(self, num_stages: int) -> tuple[RunsOn, ...]:
        """What each stage runs on.

        Raises:
            ZppError: (USAGE) the number of values is neither one nor that of the stages.
        """
        columns = (
            _each("--device", self.devices, num_stages),
            _each("--image", self.images, num_stages),
            _each("--memory-gib", self.memory_gib, num_stages),
            _each("--cpus", self.cpus, num_stages),
        )
        made = [
            RunsOn(device=device, image=image, memory_gib=memory, cpus=cpus)
            for device, image, memory, cpus in zip(*columns, strict=True)
        ]
        return tuple(UNDECIDED if own == UNDECIDED else own for own in made)


def whole_numbers(option: str, text: str | None) -> tuple[int, ...]:
    """The numbers of `--cpus 4` or `4,8`; one 0 for no text.

    Raises:
        ZppError: (USAGE) not numbers from 1 up.
    """
    if text is None:
        return (0,)
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word[:8]) <= MAX_MEMORY_GIB for word in words):
        raise usage_error(f"{option} {text[:80]}: not numbers from 1 up", "Write 8, or one a stage: 8,16.")
    return tuple(map(int, words))


def place_faults(stage: int, runs_on: RunsOn) -> list[str]:
    """What in a stage's `RunsOn` is not the kind of word that its key asks for."""
    faults = []
    if not _DEVICE.fullmatch(runs_on.device):
        faults.append(f"stage {stage} has the device {runs_on.device[:80]!r}, which is none: auto, cpu, cuda, xpu, mps")
    if holds_control(runs_on.image) or len(runs_on.image) > _LONGEST_IMAGE:
        faults.append(f"stage {stage} has the image {runs_on.image[:80]!r}, which is not the name of one")
    if runs_on.memory_gib > MAX_MEMORY_GIB or runs_on.cpus > MAX_MEMORY_GIB:
        faults.append(f"stage {stage} has more memory or processors than any machine")
    return faults


def _each(option: str, values: Sequence[_T], num_stages: int) -> tuple[_T, ...]:
    if len(values) == 1:
        return tuple(values) * num_stages
    if len(values) != num_stages:
        raise usage_error(f"{len(values)} values of {option} are given for {num_stages} stages", "Give one a stage.")
    return tuple(values)
