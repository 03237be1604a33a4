# SPDX-License-Identifier: Apache-2.0
"""Check a release of vLLM against zpptool's list of private vLLM names, without installing it.

    pip download --no-deps vllm==0.33.0
    python scripts/check_vllm_wheel.py vllm-0.33.0-*.whl [--record docs/vllm-0.33.json]

Takes a wheel, or a directory that contains the package, and reads Python source only. Exits with 1 if a hook is broken.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import zipfile
from pathlib import Path

from zpptool.engines.vllm.compat import source_check
from zpptool.engines.vllm.compat.names import HOOKS, NOT_ACROSS_STAGES, contract_digest

COMPARED = (
    ("v1.core.sched.output", "SchedulerOutput"), ("v1.core.sched.output", "NewRequestData"),
    ("v1.core.sched.output", "CachedRequestData"), ("v1.core.sched.output", "GrammarOutput"),
    ("v1.outputs", "ModelRunnerOutput"), ("sampling_params", "SamplingParams"), ("pooling_params", "PoolingParams"),
)  # fmt: skip
"""The classes whose fields are compared with the installed release's. A new field is refused unless it has its
default."""


def report(root: Path) -> dict[str, object]:
    """Compare a source tree of vLLM with the list and with the installed release."""
    installed = source_check.installed_root()
    new_fields = {}
    for module, name in COMPARED if installed else ():
        new = set(source_check.fields(root, module, name)) - set(source_check.fields(installed, module, name))
        if new:
            new_fields[name] = sorted(new)
    return {
        "vllm": source_check.release(root),
        "compared_with": source_check.release(installed) if installed else None,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "contract": contract_digest(),
        "hooks": len(HOOKS),
        "broken": source_check.broken_hooks(root),
        "new_names_of_the_pipeline_group": sorted(source_check.new_group_names(root)),
        "new_fields": new_fields,
        "collective_calls": sorted(source_check.collective_calls(root) - NOT_ACROSS_STAGES),
    }


def main() -> int:
    """Print the report as JSON, and write it to a file if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="WHEEL|DIR")
    parser.add_argument("--record", type=Path, metavar="FILE", help="also write the report to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = options.source
        if root.is_file():
            with zipfile.ZipFile(root) as wheel:
                wheel.extractall(scratch, [name for name in wheel.namelist() if name.endswith(".py")])
            root = Path(scratch)
        found = report(root / "vllm" if (root / "vllm").is_dir() else root)
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if options.record:
        options.record.write_text(text)
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
