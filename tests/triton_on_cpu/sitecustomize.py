# SPDX-License-Identifier: Apache-2.0
"""Lets vLLM's V2 model runner run on a CPU: its Triton kernels are interpreted.

Python imports this module at its start where this directory is on `PYTHONPATH`; `tests/v2.py` puts it there, together
with `TRITON_INTERPRET=1`. Three modules are completed as they are imported, and everything else is as installed:

* A CPU build of vLLM uses Triton only if Triton has a backend named `cpu`, which the package from PyPI has not. It gets
  one that is never asked to compile.
* Triton's interpreter makes an integer of some conditions (`scalar & block`), which it then refuses as the mask of a
  load or a store. Masks are made conditions again.
* It cannot run vLLM's kernel for top-k and top-p (`row_id.to(tl.int64)` of a plain integer). vLLM's own
  function for devices without Triton takes its place.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


class _CpuDriver:
    """A driver that reports itself active."""

    @staticmethod
    def is_active() -> bool:
        return True


def _add_cpu_backend(backends: ModuleType) -> None:
    backends.backends["cpu"] = backends.Backend(compiler=None, driver=_CpuDriver)


def _take_integers_as_masks(interpreter: ModuleType) -> None:
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def condition(mask: Any) -> Any:
        return interpreter.TensorHandle(mask.data.astype(bool), mask.dtype)

    builder.create_masked_load = lambda own, ptrs, mask, *rest: load(own, ptrs, condition(mask), *rest)
    builder.create_masked_store = lambda own, ptrs, value, mask, *rest: store(own, ptrs, value, condition(mask), *rest)


def _use_torch(topk_topp_sampler: ModuleType) -> None:
    topk_topp_sampler.HAS_TRITON = False


COMPLETED: dict[str, Callable[[ModuleType], None]] = {
    "triton.backends": _add_cpu_backend,
    "triton.runtime.interpreter": _take_integers_as_masks,
    "vllm.v1.sample.ops.topk_topp_sampler": _use_torch,
}


class _Loader(importlib.abc.Loader):
    """Loads a module as its own loader does, then completes it."""

    def __init__(self, stock: importlib.abc.Loader, complete: Callable[[ModuleType], None]) -> None:
        self._stock = stock
        self._complete = complete

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._stock.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._stock.exec_module(module)
        self._complete(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds those modules where they are."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in COMPLETED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, COMPLETED[name])
        return spec


if os.environ.get("TRITON_INTERPRET") == "1":
    sys.meta_path.insert(0, _Finder())
