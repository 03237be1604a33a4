# SPDX-License-Identifier: Apache-2.0
"""Every module and class that is used by name exists under that name."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from zpptool.config import engine_kind
from zpptool.config.engine_kind import ENGINES, Engine

MODULES = [
    *(
        getattr(modules, role)
        for modules in ENGINES.values()
        for role in ("worker", "head", "preload", "reference", "measure")
    ),
    engine_kind.RUN_MODULE,
    engine_kind.STANDBY_PROCESS,
    engine_kind.TP_RANK,
]
CLASSES = [
    engine_kind.BALANCED_SCHEDULER,
    engine_kind.RECOVERING_SCHEDULER,
    engine_kind.SINGLE_SEQUENCE_SCHEDULER,
]


def test_every_engine_is_in_the_table() -> None:
    assert set(ENGINES) == set(Engine)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_found(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


@pytest.mark.torch
@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_imported(module: str) -> None:
    if ".vllm." in module:
        pytest.importorskip("vllm")
    importlib.import_module(module)


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_imported(name: str) -> None:
    pytest.importorskip("vllm")
    module, _, class_name = name.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), class_name), type)
