# SPDX-License-Identifier: Apache-2.0
"""The list of private vLLM names is whole, holds for the installed release, and says by name what a release lacks."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from zpptool.engines.vllm.compat import source_check as reading
from zpptool.engines.vllm.compat.names import HOOKS, NOT_ACROSS_STAGES, Hook, contract_digest
from zpptool.errors import ZppError

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "zpptool/engines/vllm"
needs_vllm = pytest.mark.skipif(reading.installed_root() is None, reason="vLLM is not installed")
PUBLIC = {"vllm", "vllm.LLM", "vllm.plugins"}


def imports_from_vllm() -> set[str]:
    """`module.name` for everything that `engines/vllm/` imports from vLLM."""
    found = set()
    for file in ENGINE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "vllm"}
    return found


def test_whatever_is_imported_from_vllm_is_on_the_list() -> None:
    assert imports_from_vllm() - {str(hook) for hook in HOOKS} - PUBLIC == set()


@needs_vllm
def test_the_installed_release_has_every_hook() -> None:
    root = reading.installed_root()
    assert root is not None
    assert reading.broken_hooks(root) == []
    assert reading.new_group_names(root) == set()


@needs_vllm
def test_every_call_of_the_engine_to_its_workers_is_done_or_refused_by_name() -> None:
    pytest.importorskip("torch")
    from zpptool.engines.vllm.stage.model_rank import OWN_METHODS, WORKER_METHODS

    root = reading.installed_root()
    assert root is not None
    assert reading.collective_calls(root) - NOT_ACROSS_STAGES - WORKER_METHODS - OWN_METHODS - {"load_model"} == set()


def test_the_record_of_the_next_release_is_of_this_list() -> None:
    """After a change of the list: scripts/check_vllm_wheel.py WHEEL --record docs/vllm-0.33.json."""
    record = json.loads((ROOT / "docs/vllm-0.33.json").read_text())
    assert record["contract"] == contract_digest()
    assert record["vllm"].startswith("0.33.")
    assert record["broken"] == record["new_names_of_the_pipeline_group"] == []


def written(root: Path, version: str, **files: str) -> Path:
    """A source tree with a version and these modules."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "_version.py").write_text(f"__version__ = version = '{version}'\n")
    for module, source in files.items():
        (root / f"{module}.py").write_text(source)
    return root


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("class E:\n    def call(self, method, timeout=None): ...\n", None),
        ("class E:\n    def call(self, method): ...\n", "vllm.mod.E.call takes no timeout"),
        ("class E:\n    def cull(self, method, timeout): ...\n", "vllm.mod.E.call is not there"),
        ("class F: ...\n", "vllm.mod.E.call is not there"),
        ("E = 3\n", "vllm.mod.E.call: E is no class"),
        ("try:\n    from vllm.other import E\nexcept ImportError: ...\n", None),
    ],
)
def test_what_a_release_lacks_is_said_by_name(tmp_path: Path, source: str, fault: str | None) -> None:
    root = written(tmp_path, "9.1.0", mod=source, other="class E:\n    def call(self, method, timeout): ...\n")
    assert reading._fault(root, Hook("mod", "E.call", ("method", "timeout"))) == fault


def test_a_release_that_lacks_hooks_is_refused_and_one_that_was_seen_to_work_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ZppError, match=r"vLLM 9\.1\.0 lacks .*abstract\.Executor is not") as refused:
        reading.require_hooks(written(tmp_path / "late", "9.1.0"))
    assert refused.value.exit_code == 1
    assert "Install vLLM 0.32" in (refused.value.hint or "")
    reading.require_hooks(written(tmp_path / "known", "0.32.9"))


def test_a_release_that_was_never_run_warns() -> None:
    assert reading.version_warning("0.32.0") is None
    assert "read but never run" in str(reading.version_warning("0.33.1"))
    assert "unknown" in str(reading.version_warning("0.40.0"))


def test_a_stage_of_a_broken_vllm_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """As a user meets it: exit code 1, every broken hook by name, no traceback, nothing started."""
    written(tmp_path / "vllm", "9.1.0", __init__="")
    body = (
        "import sys\nfrom zpptool.errors import ZppError\nfrom zpptool.engines.registry import check_engine\n"
        "from zpptool.config.engine_kind import Engine\ntry:\n    check_engine(Engine.VLLM)\n"
        "except ZppError as fault:\n    print(fault.message)\n    sys.exit(fault.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", body], capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("vLLM 9.1.0 lacks what zpptool relies on: vllm.v1.executor.abstract.Executor is not")


def test_reading_a_release_imports_nothing_of_it() -> None:
    script = "import sys, zpptool.engines.vllm.compat.source_check; print({'torch', 'vllm'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
