# SPDX-License-Identifier: Apache-2.0
"""Importing zpptool does not change torch's streams, events and memory functions, on any device.

vLLM's `v1/worker/cpu/shm.py` replaces them with functions that do nothing. That is right in a CPU worker and fatal in a
process that computes on CUDA, so only vLLM itself may import it. `import vllm` alone wraps `torch.cuda.set_stream`
(vLLM's `utils/torch_utils.py`), so the comparison starts after that.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

SCRIPT = """
import importlib, json, pkgutil, sys
import torch
import vllm.platforms, vllm.utils.torch_utils
from vllm.platforms.interface import UnspecifiedPlatform
if sys.argv[1] == "unspecified":
    vllm.platforms._current_platform = UnspecifiedPlatform()
assert vllm.platforms.current_platform.is_cpu() == (sys.argv[1] == "cpu")
OWNERS = {
    torch: "Event", torch.cuda: "Event Stream stream current_stream set_stream",
    torch.accelerator: "synchronize empty_cache get_memory_info", torch.Tensor: "pin_memory record_stream",
}
def now():
    return {f"{o.__name__}.{name}": getattr(o, name) for o, names in OWNERS.items() for name in names.split()}
before = now()
def changed():
    return sorted(name for name, value in now().items() if value is not before[name])
import zpptool
walked, culprits = [], {}
if len(sys.argv) > 2:
    importlib.import_module(sys.argv[2])
for module in pkgutil.walk_packages(zpptool.__path__, "zpptool."):
    if module.name.endswith("__main__"):
        continue
    importlib.import_module(module.name)
    walked.append(module.name)
    if changed() and not culprits:
        culprits = {module.name: changed()}
workers = [name for name in sys.modules if name.startswith("vllm.v1.worker.") and name.endswith("_worker")]
print("ZPP " + json.dumps({"walked": walked, "culprits": culprits, "workers": workers}))
"""


def walk(*arguments: str) -> dict[str, object]:
    """Import every module of zpptool in a fresh process; returns what it has found."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = json.loads(done.stdout.rpartition("ZPP ")[2])
    return found


@pytest.mark.timeout(200)
@pytest.mark.parametrize("platform", ["cpu", "unspecified"])
def test_importing_every_module_does_not_change_torch(platform: str) -> None:
    """`unspecified` is vLLM's platform for an unknown device: the only other one that needs no accelerator."""
    found = walk(platform)
    assert {"zpptool.engines.vllm.compat.process_groups", "zpptool.engines.vllm.worker"} <= set(found["walked"])  # type: ignore[call-overload]
    assert found["culprits"] == {}
    assert found["workers"] == []


@pytest.mark.timeout(200)
def test_the_comparison_detects_what_a_cpu_worker_replaces() -> None:
    (replaced,) = walk("cpu", "vllm.v1.worker.cpu_worker")["culprits"].values()  # type: ignore[attr-defined]
    assert {"torch.cuda.Stream", "torch.Event", "torch.accelerator.synchronize", "Tensor.pin_memory"} <= set(replaced)
