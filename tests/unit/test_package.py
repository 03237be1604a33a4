# SPDX-License-Identifier: Apache-2.0
"""The packages: what they hold, and that the wheel alone is enough for the commands that need no engine."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint

import zpptool

pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys, setuptools.build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"
WITHOUT_ENGINES = """
import sys
for name in ("torch", "vllm", "transformers"):
    sys.modules[name] = None
import zpptool
assert zpptool.__file__.startswith(sys.argv[1]), zpptool.__file__
sys.argv[:] = ["zpptool", *sys.argv[2:]]
from zpptool.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the wheel and the sdist of this checkout."""
    source, out = tmp_path_factory.mktemp("source") / "src", tmp_path_factory.mktemp("dist")
    left_out = shutil.ignore_patterns(".*", "build", "dist", "demo", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=left_out, symlinks=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel."""
    out = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(out)
    return out


def test_the_versions_and_the_release_notes_agree() -> None:
    assert PROJECT["version"] == zpptool.__version__
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", zpptool.__version__]


def test_what_is_imported_without_an_engine_is_required() -> None:
    """At the top of a module outside the packages that need an extra (engines, and what serves or speaks HTTP)."""
    distributions = importlib.metadata.packages_distributions()
    required = {re.split(r"[>=<\[;]", each)[0].lower() for each in PROJECT["dependencies"]}
    missing = set()
    for path in (ROOT / "zpptool").rglob("*.py"):
        if path.relative_to(ROOT / "zpptool").parts[0] in ("engines", "serve", "batch", "parity", "net"):
            continue
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {each.partition(".")[0] for each in names} - {"zpptool", *sys.stdlib_module_names}:
                packages = {each.lower().replace("_", "-") for each in distributions.get(name, [name])}
                if not packages & required:
                    missing.add(name)
    assert not missing, "name them in dependencies of pyproject.toml"


def test_the_supported_pythons_are_the_ones_that_the_workflow_tries() -> None:
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert named[0] == PROJECT["requires-python"].removeprefix(">=")
    matrix = re.search(r"python: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text())
    assert matrix is not None
    assert re.findall(r"3\.\d+", matrix[1]) == named


@pytest.mark.timeout(120)
def test_the_wheel_holds_the_package_and_nothing_else(built: Path, unpacked: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"zpptool-{zpptool.__version__}-py3-none-any.whl"
    tops = {path.name for path in unpacked.iterdir()}
    assert tops == {"zpptool", f"zpptool-{zpptool.__version__}.dist-info"}
    here = {path.relative_to(ROOT) for path in (ROOT / "zpptool").rglob("*") if path.is_file()}
    ours = {path for path in here if "__pycache__" not in path.parts}
    there = {path.relative_to(unpacked) for path in (unpacked / "zpptool").rglob("*") if path.is_file()}
    assert there == ours
    info = unpacked / f"zpptool-{zpptool.__version__}.dist-info"
    entries = (info / "entry_points.txt").read_text()
    assert "zpptool = zpptool.__main__:main" in entries
    assert "zpptool = zpptool.engines.vllm.plugin:register" in entries
    stated = email.message_from_string((info / "METADATA").read_text())
    assert stated["Requires-Python"] == PROJECT["requires-python"]
    assert set(stated.get_all("Provides-Extra") or ()) == set(PROJECT["optional-dependencies"])
    assert (info / "licenses/LICENSE").is_file()


def test_the_sdist_holds_tests_and_documentation(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"docs/quickstart.md", "tests/conftest.py", "tests/cli/flags.json", "docker/cpu.Dockerfile", "Makefile"}
    wanted |= {"CHANGELOG.md", "examples/offline.py", "scripts/make_env.sh", "requirements.lock", "LICENSE"}
    assert wanted <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".cache", ".venv"))]


def run_unpacked(unpacked: Path, tmp_path: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command with the package of the wheel, in another directory, where no engine can be imported."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "COLUMNS": "200"}
    command = [sys.executable, "-c", WITHOUT_ENGINES, str(unpacked), *map(str, words)]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_wheel_splits_validates_and_joins_without_an_engine(unpacked: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", llama(), llama_config())
    for words in (
        ["--help"],
        ["split", "model", "--num-stages", 2, "--output-dir", "stages"],
        ["validate", "stages", "--model", "model"],
        ["join", "stages", "--output-dir", "again"],
        ["plan", "model", "--num-stages", 2, "-o", "zpp.yaml"],
    ):
        done = run_unpacked(unpacked, tmp_path, *words)
        assert done.returncode == 0, (words, done.stderr)
    assert (tmp_path / "again/config.json").read_bytes() == (tmp_path / "model/config.json").read_bytes()


@pytest.mark.long
@pytest.mark.timeout(540)
def test_the_wheel_is_installed_into_a_clean_environment(built: Path, tmp_path: Path) -> None:
    """The wheel with what it requires, from the index that pip knows here; skipped where pip reaches none."""
    clean = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", clean], check=True, timeout=100)
    install = [clean / "bin/python", "-m", "pip", "install", "--quiet", next(built.glob("*.whl"))]
    done = subprocess.run(install, capture_output=True, text=True, timeout=400, check=False)
    if "No matching distribution" in done.stderr:
        pytest.skip("pip reaches no index that has the requirements")
    assert done.returncode == 0, done.stderr
    write_checkpoint(tmp_path / "model", llama(), llama_config())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for words in (
        ["--version"],
        ["--help"],
        ["split", "model", "--num-stages", "2", "--output-dir", "stages"],
        ["validate", "stages", "--model", "model"],
    ):
        ran = subprocess.run(
            [clean / "bin/zpptool", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert ran.returncode == 0, (words, ran.stderr)
    assert not list((clean / "lib").rglob("torch"))
