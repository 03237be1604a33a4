# SPDX-License-Identifier: Apache-2.0
"""How long a lost stage may take to come back where the user does not say: longer on a GPU. Pure."""

from __future__ import annotations

CPU_S = 120.0
"""A new vLLM process takes 10 to 20 s for its imports on the project's CPU test machine (measured)."""
GPU_S = 300.0
"""A new vLLM process on CUDA is ready after 60 to 150 s, most of it imports, profiling and CUDA graphs. That is an
estimate from its source and was never measured. Requests wait for all of it."""


def recovery_deadline_s(given: float | None, *, on_cpu: bool) -> float:
    """The deadline in seconds.

    Args:
        given: what the user gives; None for nothing.
        on_cpu: whether the stages compute on the CPU.
    """
    if given is not None:
        return given
    return CPU_S if on_cpu else GPU_S
