# SPDX-License-Identifier: Apache-2.0
"""The environment in which vLLM's V2 model runner runs on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

from zpptool.config.runner_choice import VARIABLE

HOOKS = Path(__file__).resolve().parent / "triton_on_cpu"
USED = "Using V2 Model Runner"
"""What a worker logs that runs it."""


def v2_environment() -> dict[str, str]:
    """Variables for the processes of both sides, head, stages and unsplit engine. Triton has to be installed: xgrammar
    brings it on x86-64."""
    path = os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {VARIABLE: "1", "TRITON_INTERPRET": "1", "PYTHONPATH": path}
