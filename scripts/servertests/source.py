# SPDX-License-Identifier: Apache-2.0
"""vLLM's tests from its source distribution, and what they import, in a directory of the cache. Nothing is built."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

WANTED = ("tests", "examples")
"""The directories of the source distribution that are kept. Its package is not: the installed one is to be imported."""

PACKAGES = {"pytest_asyncio": "pytest-asyncio", "tblib": "tblib"}
"""What the tests import and this project does not need otherwise: module and distribution."""

INI = "pytest.ini"
MARKERS = ("asyncio", "skip_global_cleanup", "slow_test", "optional", "cpu_test", "core_model")


def prepare_tests(cache: Path, version: str, sdist: Path | None) -> Path:
    """The directory that has vLLM's `tests`, got at the first call.

    Args:
        cache: where it is kept.
        version: of vLLM.
        sdist: its source distribution; pip downloads it if None.

    Raises:
        SystemExit: it could not be got.
    """
    tree = cache / f"vllm-{version}"
    if not (tree / INI).exists():
        shutil.rmtree(tree, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="unpacking-") as scratch:
            root = _unpacked(sdist, Path(scratch)) if sdist else _downloaded(version, Path(scratch))
            for name in WANTED:
                shutil.copytree(root / name, tree / name)
        lines = ["[pytest]", "asyncio_default_fixture_loop_scope = function", "markers ="]
        (tree / INI).write_text("\n".join([*lines, *(f"    {marker}" for marker in MARKERS)]) + "\n")
    return tree


def prepare_packages(cache: Path) -> Path:
    """A directory to be put on PYTHONPATH, with those of `PACKAGES` that are not installed."""
    directory = cache / "packages"
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    missing = [name for name in missing if not list(directory.glob(f"{name.replace('-', '_')}-*"))]
    if missing:
        _pip("install", "--quiet", "--no-deps", "--target", str(directory), *missing, check=True)
    return directory


def _downloaded(version: str, scratch: Path) -> Path:
    """The source that pip downloads and unpacks.

    pip cannot keep a source distribution without asking its build for metadata, which fails where vLLM's build
    requirements are not installed; what it has unpacked stays with --no-clean.
    """
    words = ["download", "--no-deps", "--no-build-isolation", "--no-clean", "--no-binary", ":all:", f"vllm=={version}"]
    done = _pip(*words, "--dest", str(scratch), check=False, env={**os.environ, "TMPDIR": str(scratch)})
    for archive in scratch.glob("vllm-*.tar.gz"):
        return _unpacked(archive, scratch / "unpacked")
    for tests in scratch.glob("pip-*/vllm_*/tests"):
        return tests.parent
    raise SystemExit(f"pip could not download vllm {version}; give its source with --sdist FILE\n{done.stderr[-1000:]}")


def _unpacked(sdist: Path, into: Path) -> Path:
    with tarfile.open(sdist) as archive:
        wanted = [one for one in archive.getmembers() if one.name.split("/")[1:2] and one.name.split("/")[1] in WANTED]
        archive.extractall(into, wanted, filter="data")
    for tests in into.glob("*/tests/entrypoints"):
        return tests.parents[1]
    raise SystemExit(f"{sdist} has no tests/entrypoints; it is to be a source distribution of vLLM")


def _pip(*words: str, check: bool, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, env=env)
    if check and done.returncode:
        raise SystemExit(f"pip {' '.join(words)} failed:\n{done.stderr[-1000:]}")
    return done
