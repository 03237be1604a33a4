# SPDX-License-Identifier: Apache-2.0
"""What changed between two releases of vLLM, of all that zpptool relies on, is found by reading them."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from zpptool.engines.vllm.compat import source_compare
from zpptool.engines.vllm.compat.names import Hook

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/check_vllm_wheel.py"
OLD = '''
class Thing:
    field: int
    def same(self, a):
        """Words."""
        return a
    def wider(self, a): ...
    def other(self, a):
        return a + 1
def gone(): ...
'''
NEW = '''
class Thing:
    field: int
    late: str
    def same(self, a):  # other words
        """Other words."""
        return (a)
    def wider(self, a, b): ...
    def other(self, a):
        return a + 2
'''


def tree(root: Path, version: str, source: str) -> Path:
    root.mkdir()
    (root / "_version.py").write_text(f"__version__ = '{version}'\n")
    (root / "mod.py").write_text(source)
    return root


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    names = ("Thing.same", "Thing.wider", "Thing.other", "Thing.field", "gone", "never")
    monkeypatch.setattr(source_compare, "HOOKS", tuple(Hook("mod", name) for name in names))
    monkeypatch.setattr(source_compare, "COMPARED", (("mod", "Thing"),))
    return tree(tmp_path / "old", "9.1.0", OLD), tree(tmp_path / "new", "9.2.0", NEW)


def test_names_parameters_and_code_are_compared_and_words_are_not(trees: tuple[Path, Path]) -> None:
    assert source_compare.hook_changes(*trees) == {
        "missing": ["vllm.mod.gone: not in 9.2.0"],
        "parameters": ["vllm.mod.Thing.wider: (self, a) -> (self, a, b)"],
        "code": ["vllm.mod.Thing.other"],
    }
    assert source_compare.hook_changes(trees[0], trees[0]) == {}


def test_fields_are_compared_in_both_directions(trees: tuple[Path, Path]) -> None:
    old, new = trees
    assert source_compare.field_changes(old, new) == {"Thing": {"added": ["late"]}}
    assert source_compare.field_changes(new, old) == {"Thing": {"removed": ["late"]}}


def test_the_script_compares_two_wheels(tmp_path: Path) -> None:
    """They have a call that was added, and lack every name: exit code 1."""
    engine = ("v1/executor/abstract.py", "v1/engine/core.py", "v1/engine/async_llm.py", "v1/engine/llm_engine.py")
    for name, call in ("old", "profile"), ("new", "fly"):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as wheel:
            wheel.writestr("vllm/_version.py", f"__version__ = '9.1.0+{name}'\n")
            for file in engine:
                wheel.writestr(f"vllm/{file}", f"self.collective_rpc('{call}')\n")
    record = tmp_path / "record.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "old.whl"), str(tmp_path / "new.whl"), "--record", str(record)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = json.loads(record.read_text())
    assert json.loads(done.stdout) == found
    assert (found["from"], found["to"]) == ("9.1.0+old", "9.1.0+new")
    assert found["collective_calls_changed"] == {"added": ["fly"], "removed": ["profile"]}
    assert len(found["faults"]["9.1.0+new"]["broken"]) > 100


@pytest.mark.parametrize(("old", "new"), [("0.31", "0.32"), ("0.32", "0.33")])
def test_the_changes_from_release_to_release_are_recorded(old: str, new: str) -> None:
    found = json.loads((ROOT / f"docs/vllm-{old}-to-{new}.json").read_text())
    assert (found["from"], found["to"]) == (f"{old}.0", f"{new}.0")
    assert found["faults"][f"{new}.0"]["broken"] == []
