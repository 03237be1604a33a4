# SPDX-License-Identifier: Apache-2.0
"""Hold zpptool's list of private vLLM names against a release of vLLM, without installing it.

    pip download --no-deps vllm==0.33.0
    python scripts/check_vllm_wheel.py vllm-0.33.0-*.whl [--record docs/vllm-0.33.json]

Takes a wheel, or a directory with the package in it, and reads Python source only. Exit code 1 if a hook is broken.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import zipfile
from pathlib import Path

from zpptool.engines.vllm.compat import source_check as reading
from zpptool.engines.vllm.compat.names import HOOKS, NOT_ACROSS_STAGES, contract_digest

TRAVELLING = (
    ("v1.core.sched.output", "SchedulerOutput"), ("v1.core.sched.output", "NewRequestData"),
    ("v1.core.sched.output", "CachedRequestData"), ("v1.core.sched.output", "GrammarOutput"),
    ("v1.outputs", "ModelRunnerOutput"), ("sampling_params", "SamplingParams"), ("pooling_params", "PoolingParams"),
)  # fmt: skip
"""The classes whose fields are compared with the installed release's: a new one is refused unless it is left alone."""


def report(root: Path) -> dict[str, object]:
    """What a source tree of vLLM has and lacks."""
    installed = reading.installed_root()
    new_fields = {}
    for module, name in TRAVELLING if installed else ():
        new = set(reading.fields(root, module, name)) - set(reading.fields(installed, module, name))
        if new:
            new_fields[name] = sorted(new)
    return {
        "vllm": reading.release(root),
        "compared_with": reading.release(installed) if installed else None,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "contract": contract_digest(),
        "hooks": len(HOOKS),
        "broken": reading.broken_hooks(root),
        "new_names_of_the_pipeline_group": sorted(reading.new_group_names(root)),
        "new_fields": new_fields,
        "collective_calls": sorted(reading.collective_calls(root) - NOT_ACROSS_STAGES),
    }


def main() -> int:
    """Print the report as JSON, and keep it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="WHEEL|DIR")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the report here, too")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = told.source
        if root.is_file():
            with zipfile.ZipFile(root) as wheel:
                wheel.extractall(scratch, [name for name in wheel.namelist() if name.endswith(".py")])
            root = Path(scratch)
        found = report(root / "vllm" if (root / "vllm").is_dir() else root)
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if told.record:
        told.record.write_text(text)
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
