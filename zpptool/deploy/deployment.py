# SPDX-License-Identifier: Apache-2.0
"""The input of a deployment: the plan, and the settings that a plan does not contain."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from zpptool.config.plan import PipelinePlan, PlannedStage, plan_faults
from zpptool.config.runs_on import AUTO
from zpptool.deploy.cluster_settings import DEFAULTS, ClusterSettings, settings_faults
from zpptool.deploy.quoting import check_image, check_program, check_source
from zpptool.errors import invalid_error, usage_error

LONGEST_NAME = 40
"""Maximum length of a deployment's name: a Service name has at most 63 characters (RFC 1123), and a suffix such as
`-stage-NN-keys` is appended."""
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
        name: name, or name prefix, of everything generated for it.
        image: the container image, which contains zpptool and the engine, of stages for which the plan names none.
        source: where stages get their tensors: `hf://org/name@revision`, `pvc://claim/path`, or a directory.
        device: what a stage computes on, where the plan leaves it open.
        insecure: whether links have no keys.
        program: absolute path of zpptool on the hosts, for systemd.
        settings: of the Kubernetes cluster.
    """

    plan: PipelinePlan
    name: str
    image: str
    source: str
    device: Device = Device.CUDA
    insecure: bool = False
    program: str = "/opt/zpptool/bin/zpptool"
    settings: ClusterSettings = DEFAULTS

    @property
    def is_hub(self) -> bool:
        """Whether stages fetch their tensors from the Hugging Face Hub."""
        return self.source.startswith("hf://")

    def device_of(self, place: PlannedStage) -> Device:
        """What a stage computes on; raises ZppError (INVALID) if nothing can be deployed on that."""
        device = place.runs_on.device
        if device == AUTO:
            return self.device
        if device not in set(Device):
            raise invalid_error(
                f"the plan has device {device} for stage {place.stage}, and stages are deployed on cpu or cuda",
                "Change the plan; which of its GPUs a stage gets is decided by the deployment.",
            )
        return Device(device)

    def image_of(self, place: PlannedStage) -> str:
        """The container image of a stage."""
        return place.runs_on.image or self.image


def check_deployment(deployment: Deployment) -> Deployment:
    """Check a deployment and return it.

    Raises:
        ZppError: (USAGE) the name, image, source, program or a setting is not valid; (INVALID) the plan is not.
    """
    if not _NAME.fullmatch(deployment.name) or len(deployment.name) > LONGEST_NAME:
        raise usage_error(
            f"{deployment.name!r} is not a valid name for a deployment",
            f"Use lower-case letters, digits and -, starting with a letter, {LONGEST_NAME} characters at most.",
        )
    for image in dict.fromkeys(map(deployment.image_of, deployment.plan.stages)):
        check_image(image)
    check_source(deployment.source)
    check_program(deployment.program)
    faults = plan_faults(deployment.plan)
    if faults:
        raise invalid_error(
            "the plan is not valid: " + "; ".join(faults), "Correct the plan; zpptool validate FILE lists its faults."
        )
    for place in deployment.plan.stages:
        deployment.device_of(place)
    wrong = settings_faults(deployment.settings, len(deployment.plan.stages))
    if wrong:
        raise usage_error("the values are not valid: " + "; ".join(wrong), "Correct the file of --values.")
    return deployment
