# SPDX-License-Identifier: Apache-2.0
"""vLLM's V2 model runner under the tests that stages of V1 pass: every feature, kills, planned changes, scripts.

Each file is run again in a process of its own, whose environment chooses V2 for both sides.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from v2 import v2_environment

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.model,
    pytest.mark.long,
    pytest.mark.timeout(4000),
    pytest.mark.skipif(find_spec("triton") is None, reason="no triton: the V2 runner's kernels need it"),
]

ROOT = Path(__file__).resolve().parents[2]
SUITE_S = 3900


@pytest.mark.parametrize(
    ("file", "chosen"),
    [
        pytest.param("test_vllm_features.py", "", id="features"),
        pytest.param("test_vllm_recovery.py", "under_load or spare", id="recovery"),
        pytest.param("test_vllm_changes.py", "", id="changes"),
        pytest.param("test_vllm_tensor_parallel.py", "", id="tensor-parallel"),
    ],
)
def test_a_suite_of_stages_passes_with_v2(file: str, chosen: str, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-m", "vllm", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(
        [*command, *(("-k", chosen) if chosen else ()), f"tests/integration/{file}"],
        cwd=ROOT, env={**os.environ, **v2_environment()}, timeout=SUITE_S, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert 'skipped="0"' in report.read_text()
