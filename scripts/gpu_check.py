# SPDX-License-Identifier: Apache-2.0
"""Check zpptool on a machine with a CUDA card: staging, both engines, recovery, speed.

    python scripts/gpu_check.py                          # within ten minutes; one card is enough
    python scripts/gpu_check.py --only staging,embedded  # some checks; a name's beginning chooses several
    python scripts/gpu_check.py --budget 45 --model DIR --docs docs/compatibility.md
    python scripts/gpu_check.py --device cpu             # what needs no card

Needs zpptool[transformers]; the checks of vLLM are skipped where it is not installed. Writes gpu-check.json, and
gpu-check.md for docs/compatibility.md, and keeps all logs. Exit code 1: a check failed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # zpptool, where it is not installed

from gpucheck.check import Bench, Outcome, Verdict
from gpucheck.checks import CHECKS
from gpucheck.machine import this_machine
from gpucheck.report import BEGIN, END, Report, as_json, as_table, exit_code, line_of
from gpucheck.run import chosen, run_checks
from gpucheck.tiny_model import make_tiny_model
from page_part import replace_part


def main() -> int:
    """Run the checks, print a line for each, and write the report. Returns the exit code."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    try:
        checks = chosen(CHECKS, options.only.split(",") if options.only else ())
    except ValueError as unknown:
        _parser().error(str(unknown))
    machine = this_machine(options.device)
    if machine.device == "cuda" and not machine.cards:
        _parser().error("torch finds no CUDA card on this machine; --device cpu runs what needs none")
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    model = options.model or make_tiny_model(output / "model")
    outcomes: list[Outcome] = []
    bench = Bench(machine, model, output, 0)
    for outcome in run_checks(checks, bench, options.budget * 60):
        outcomes.append(outcome)
        print(line_of(outcome), flush=True)
    given = str(options.model.name) if options.model else ""
    report = Report(time.strftime("%Y-%m-%d"), machine, given, options.budget * 60, tuple(outcomes))
    (output / "gpu-check.json").write_text(as_json(report))
    table = as_table(report, CHECKS)
    (output / "gpu-check.md").write_text(table + "\n")
    if options.docs:
        options.docs.write_text(replace_part(options.docs.read_text(), table, BEGIN, END))
    left_out = [outcome.name for outcome in outcomes if outcome.detail.startswith("no time")]
    if left_out:
        print(f"left out for time, run again with a larger --budget or --only: {','.join(left_out)}")
    done = sum(outcome.verdict is not Verdict.SKIPPED for outcome in outcomes)
    print(f"{done} of {len(outcomes)} checks were run; report and logs are in {output}")
    return exit_code(outcomes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: a card, if any")
    parser.add_argument("--budget", type=float, default=10, metavar="MINUTES", help="for all checks (default: 10)")
    parser.add_argument("--only", metavar="NAMES", help="run these: " + ", ".join(check.name for check in CHECKS))
    parser.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint (default: a tiny one is made)")
    parser.add_argument("--output", type=Path, default=Path("gpu-check"), metavar="DIR", help="default: gpu-check")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this page too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
