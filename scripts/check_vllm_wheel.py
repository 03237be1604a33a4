# SPDX-License-Identifier: Apache-2.0
"""Check releases of vLLM against zpptool's list of private vLLM names, without installing them.

    pip download --no-deps vllm==0.33.0
    python scripts/check_vllm_wheel.py vllm-0.33.0-*.whl [--record docs/vllm-0.33.json]
    python scripts/check_vllm_wheel.py vllm-0.32.0-*.whl vllm-0.33.0-*.whl [--record docs/vllm-0.32-to-0.33.json]

Each is a wheel, or a directory that contains the package. One release is checked, and its fields are compared with the
installed release's. Of two releases, in this order, it prints what changed of all that zpptool relies on. Only Python
source is read. Exits with 1 if the last release lacks a name.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import zipfile
from pathlib import Path

from zpptool.engines.vllm.compat import source_check, source_compare
from zpptool.engines.vllm.compat.names import HOOKS, NOT_ACROSS_STAGES, contract_digest


def report(root: Path) -> dict[str, object]:
    """Check a source tree of vLLM, and compare it with the installed release."""
    installed = source_check.installed_root()
    changes = source_compare.field_changes(installed, root) if installed else {}
    return {
        "vllm": source_check.release(root),
        "compared_with": source_check.release(installed) if installed else None,
        "date": today(),
        "contract": contract_digest(),
        "hooks": len(HOOKS),
        **faults(root),
        "new_fields": {name: found["added"] for name, found in changes.items() if "added" in found},
        "collective_calls": sorted(source_check.collective_calls(root) - NOT_ACROSS_STAGES),
    }


def comparison(old: Path, new: Path) -> dict[str, object]:
    """What changed from one source tree of vLLM to another."""
    return {
        "from": source_check.release(old),
        "to": source_check.release(new),
        "date": today(),
        "hooks": len(HOOKS),
        "faults": {source_check.release(root): faults(root) for root in (old, new)},
        "hooks_changed": source_compare.hook_changes(old, new),
        "fields_changed": source_compare.field_changes(old, new),
        "collective_calls_changed": source_compare.call_changes(old, new),
    }


def faults(root: Path) -> dict[str, list[str]]:
    """What a release lacks, and what it has that zpptool does not know."""
    return {
        "broken": source_check.broken_hooks(root),
        "new_names_of_the_pipeline_group": sorted(source_check.new_group_names(root)),
        "new_names_of_the_token_handler": sorted(source_check.new_handler_names(root)),
    }


def today() -> str:
    """The date, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def unpacked(source: Path, scratch: Path) -> Path:
    """The directory of the package in a wheel, whose Python source is extracted to `scratch`, or in a directory."""
    if source.is_file():
        with zipfile.ZipFile(source) as wheel:
            wheel.extractall(scratch, [name for name in wheel.namelist() if name.endswith(".py")])
        source = scratch
    return source / "vllm" if (source / "vllm").is_dir() else source


def main() -> int:
    """Print the report as JSON, and write it to a file if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="WHEEL|DIR")
    parser.add_argument("newer", type=Path, metavar="NEWER", nargs="?", help="compare with this release")
    parser.add_argument("--record", type=Path, metavar="FILE", help="also write the report to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        root = unpacked(options.source, Path(first))
        newest = root if options.newer is None else unpacked(options.newer, Path(second))
        found = report(root) if options.newer is None else comparison(root, newest)
        broken = bool(source_check.broken_hooks(newest))
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if options.record:
        options.record.write_text(text)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
