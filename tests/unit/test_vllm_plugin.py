# SPDX-License-Identifier: Apache-2.0
"""Installed as a plugin, zpptool adds one load format to vLLM and changes nothing else."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from plugin import GROUP, install_plugin

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

ROOT = Path(__file__).resolve().parents[2]
WATCHED = (
    "vllm.distributed.parallel_state", "vllm.v1.executor.abstract", "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.cpu_worker", "vllm.engine.arg_utils", "vllm.model_executor.model_loader",
)  # fmt: skip
SCRIPT = """
import importlib, json, os, sys
from vllm.model_executor import model_loader
watched = [importlib.import_module(name) for name in json.loads(sys.argv[1])]
def state():
    return {m.__name__: {k: id(v) for k, v in vars(m).items() if not k.startswith('__')} for m in watched}
formats, before, environment = dict(model_loader._LOAD_FORMAT_TO_MODEL_LOADER), state(), dict(os.environ)
from vllm.plugins import load_general_plugins
load_general_plugins()
after = dict(model_loader._LOAD_FORMAT_TO_MODEL_LOADER)
print(json.dumps({
    "added": sorted(after.keys() - formats.keys()),
    "kept": all(after[name] is kind for name, kind in formats.items()),
    "modules": before == state(),
    "environment": environment == dict(os.environ),
    "loaded": sorted(name for name in sys.modules if name.startswith("zpptool.")),
}))
"""


def test_the_entry_point_names_an_existing_function() -> None:
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    assert list(entry_points) == ["zpptool"]
    module, _, name = entry_points["zpptool"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.timeout(200)
def test_stock_vllm_is_unchanged(tmp_path: Path) -> None:
    """The plugin is found as vLLM finds plugins: by the entry points of installed distributions."""
    install_plugin(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(WATCHED)], capture_output=True, text=True, timeout=180, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "VLLM_PLUGINS": "as_plugin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    state = json.loads(done.stdout.splitlines()[-1])
    assert state["added"] == ["zpptool-own"]
    assert state["kept"]
    assert state["modules"]
    assert state["environment"]
    assert state["loaded"] == [
        "zpptool.engines", "zpptool.engines.vllm", "zpptool.engines.vllm.compat",
        "zpptool.engines.vllm.compat.model_loader", "zpptool.engines.vllm.plugin",
    ]  # fmt: skip
