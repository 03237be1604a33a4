# SPDX-License-Identifier: Apache-2.0
"""Try every class with the oldest allowed and the newest release of transformers, and print what has changed.

    python scripts/upstream.py                                # both
    python scripts/upstream.py --only MambaForCausalLM        # some classes
    python scripts/upstream.py --release 5.19.0               # another release

Each release is installed into an environment of its own below build/upstream/, on top of the packages of this one,
which stays as it is. There `scripts/coverage_report.py` tries the classes, updates the release's record
(docs/coverage-transformers-RELEASE.jsonl), prints what has changed there, and writes docs/coverage.md. A run that was
stopped continues.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / "build/upstream"
PACKAGE = "transformers"


def main() -> int:
    """Install the releases and try them one after the other. Returns 1 if a class is wrong with any of them."""
    options = _parser().parse_args()
    releases = options.release or sorted({oldest(requirement()), newest(requirement())}, key=Version)
    codes = []
    for release in releases:
        print(f"transformers {release}", flush=True)
        python = environment(release)
        command = [python, ROOT / "scripts/coverage_report.py", "--limit", str(options.limit)]
        command += ["--only", options.only] if options.only else []
        command += ["--fresh"] if options.fresh else []
        codes.append(subprocess.run(command, env={**os.environ, "PYTHONPATH": search_path()}, check=False).returncode)
    return 1 if any(codes) else 0


def search_path() -> str:
    """PYTHONPATH of a trial: this project, and the tests' torchvision, which processors of images import, if it is
    there."""
    torchvision = ROOT / ".cache/torchvision-0.28.0"
    parts = [ROOT / "tests/torchvision_parts", torchvision] if torchvision.is_dir() else []
    return os.pathsep.join(map(str, [ROOT, *parts]))


def requirement() -> Requirement:
    """What this project requires of transformers."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return next(found for found in map(Requirement, extras[PACKAGE]) if found.name == PACKAGE)


def oldest(required: Requirement) -> str:
    """The oldest release that is allowed: the lower bound, in full."""
    bound = next(part.version for part in required.specifier if part.operator == ">=")
    return ".".join([*bound.split("."), "0", "0"][:3])


def newest(required: Requirement) -> str:
    """The newest release that is allowed, as the package index has it."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
    ran = subprocess.run([*command, "--report", "-", str(required)], stdout=subprocess.PIPE, text=True, check=True)
    installs = json.loads(ran.stdout)["install"]
    version: str = next(entry["metadata"]["version"] for entry in installs if entry["metadata"]["name"] == PACKAGE)
    return version


def environment(release: str) -> Path:
    """The Python of an environment that has this release, and otherwise the packages of this one; made if it is not
    there. The release and what it newly needs precede them on its path."""
    directory = ENVIRONMENTS / release
    python = directory / "bin/python"
    if not (directory / "ready").is_file():
        venv.create(directory, clear=True, with_pip=True)
        below = sysconfig.get_path("purelib", vars={"base": str(directory), "platbase": str(directory)})
        (Path(below) / "below.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"{PACKAGE}=={release}"], check=True)
        (directory / "ready").touch()
    return python


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", help="class names, with commas between")
    parser.add_argument("--release", action="append", help="a release of transformers; may be repeated")
    parser.add_argument("--fresh", action="store_true", help="discard the results of a run that was stopped")
    parser.add_argument("--limit", type=int, default=120, metavar="SECONDS", help="time limit for one class")
    return parser


if __name__ == "__main__":
    sys.exit(main())
