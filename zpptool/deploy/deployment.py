# SPDX-License-Identifier: Apache-2.0
"""What a deployment is made from: the plan and the few things that a plan does not say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from zpptool.config.plan import PipelinePlan, plan_faults
from zpptool.deploy.quoting import check_image, check_program, check_source
from zpptool.errors import invalid_error, usage_error

LONGEST_NAME = 40
"""A Service's name has at most 63 characters (RFC 1123), and `-stage-NN-keys` is put behind ours."""
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


class Device(StrEnum):
    """What a stage computes on."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Deployment:
    """One pipeline to deploy.

    Attributes:
        plan: the pipeline.
        name: of everything that is made for it.
        image: the container image with zpptool and the engine in it.
        source: where stages get their tensors: `hf://org/name@revision`, `pvc://claim/path`, or a directory.
        device: what each stage computes on.
        insecure: links without keys.
        program: the zpptool of the machines that systemd runs it on.
    """

    plan: PipelinePlan
    name: str
    image: str
    source: str
    device: Device = Device.CUDA
    insecure: bool = False
    program: str = "/opt/zpptool/bin/zpptool"

    @property
    def is_hub(self) -> bool:
        """Whether stages fetch their tensors from the Hugging Face Hub."""
        return self.source.startswith("hf://")


def check_deployment(wish: Deployment) -> Deployment:
    """The deployment itself, once its plan can work and its words can be what they stand for.

    Raises:
        ZppError: (USAGE) the name, the image, the source or the program cannot be; (INVALID) the plan cannot work.
    """
    if not _NAME.fullmatch(wish.name) or len(wish.name) > LONGEST_NAME:
        raise usage_error(
            f"{wish.name!r} cannot name a deployment",
            f"Lower-case letters, digits and -, a letter first, {LONGEST_NAME} characters at most.",
        )
    check_image(wish.image)
    check_source(wish.source)
    check_program(wish.program)
    faults = plan_faults(wish.plan)
    if faults:
        raise invalid_error("the plan cannot work: " + "; ".join(faults), "zpptool validate FILE lists this too.")
    return wish
