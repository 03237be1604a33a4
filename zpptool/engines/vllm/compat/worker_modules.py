# SPDX-License-Identifier: Apache-2.0
"""Finds vLLM's modules that define workers, without importing them.

On import, `cpu_worker` replaces torch's CUDA streams, events and memory functions with functions that do nothing, for
the whole process, and expects to be imported before `gpu_worker`. So zpptool imports none of them: vLLM imports its
platform's module when it makes a worker.
"""

from __future__ import annotations

import sys
from types import ModuleType

from zpptool.errors import ZppError

BUILDER = "init_worker_distributed_environment"
"""The function that builds a worker's process groups."""
WORKER_MODULES = tuple(f"vllm.v1.worker.{kind}_worker" for kind in ("gpu", "cpu", "xpu"))
"""Each of them binds `BUILDER` by name."""


def imported_worker_modules() -> list[ModuleType]:
    """The modules of `WORKER_MODULES` that vLLM has imported, `gpu_worker` first: the other two import it.

    Raises:
        ZppError: (FAILURE) none is imported: no worker was made yet.
    """
    modules = [sys.modules[name] for name in WORKER_MODULES if name in sys.modules]
    if not modules:
        raise ZppError(
            "vLLM has imported none of its workers, so that their process groups cannot be replaced",
            f"This release of vLLM may define them elsewhere than in {', '.join(WORKER_MODULES)}.",
        )
    return modules
