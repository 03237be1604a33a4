# SPDX-License-Identifier: Apache-2.0
"""Staging forced on a CPU: stages copy their tensors through a simulated device that is late by random times.

`ZPP_TEST_STAGING=0.05 pytest tests/integration/test_embedded_recovery.py` runs those tests so, in which each operation
of the device takes up to 0.05 s. zpptool itself knows nothing of it: what decides whether a device has memory of its
own is replaced when it is imported, in each process that a test starts.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "ZPP_TEST_STAGING"
MODULE = "zpptool.engines.staging.device"
TESTS = Path(__file__).resolve().parent


def staged_environment(delay_s: float) -> dict[str, str]:
    """The variables with which a process and its children stage their tensors."""
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    path = os.pathsep.join([str(TESTS / "forced_staging"), str(TESTS.parent), *inherited])
    return {VARIABLE: str(delay_s), "PYTHONPATH": path}


def patience() -> int:
    """How many times longer things may take: processes that need no torch otherwise import it where staging is
    forced."""
    return 5 if os.environ.get(VARIABLE) else 1


def install() -> None:
    """Have this process stage, once it imports what decides that."""
    from tests.changed_import import ChangedImport

    sys.meta_path.insert(0, ChangedImport(MODULE, _stage_late))


def _stage_late(module: ModuleType) -> None:
    module.device_apart = _late_device  # type: ignore[attr-defined]


def _late_device(device: Any) -> Any:
    sys.path.insert(0, str(TESTS.parent / "scripts"))
    from gpucheck.stub_device import StubDevice

    if device is None:
        return None
    logging.getLogger("zpptool.staged").info("tensors are staged through a simulated device")
    return StubDevice(computes_on_host=True, delay_s=float(os.environ[VARIABLE]), seed=random.randrange(2**32))
