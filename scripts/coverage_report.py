# SPDX-License-Identifier: Apache-2.0
"""Find out which model classes of the installed transformers can be split and run, and write docs/coverage.md.

    python scripts/coverage_report.py                       # all; continues where an earlier run was stopped
    python scripts/coverage_report.py --only LlamaForCausalLM,GPT2LMHeadModel --no-table
    python scripts/coverage_report.py --table-only          # from existing results

Each class is tried in a process of its own, with a time limit, and its outcome is one line of the results file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from families.case import Outcome, model_classes, try_class
from families.table import coverage_table
from families.vllm_outcome import read_outcomes

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Try the classes, print a line for each, and write the table. Returns 1 if anything is wrong."""
    options = _parser().parse_args()
    only = set(options.only.split(",")) if options.only else None
    options.results.parent.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        options.results.unlink(missing_ok=True)
    done = {outcome.name: outcome for outcome in _read(options.results)}
    if not options.table_only:
        classes = {name: found for name, found in model_classes().items() if only is None or name in only}
        for name, (model_class, config_class) in classes.items():
            if name not in done:
                done[name] = _in_a_process(name, model_class, config_class, options.limit)
                with options.results.open("a") as stream:
                    stream.write(json.dumps(done[name].as_json()) + "\n")
                print(f"{name}: {done[name].structure} {done[name].embedded} {done[name].reason}".strip(), flush=True)
    outcomes = sorted((o for o in done.values() if only is None or o.name in only), key=lambda outcome: outcome.name)
    if not options.no_table:
        options.table.write_text(coverage_table(outcomes, read_outcomes()))
        print(f"wrote {options.table}", file=sys.stderr)
    bad = [outcome for outcome in outcomes if "wrong" in outcome.structure or outcome.embedded == "different"]
    for outcome in bad:
        print(f"wrong: {outcome.name}: {outcome.reason}", file=sys.stderr)
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", help="class names, with commas between")
    parser.add_argument("--results", type=Path, default=ROOT / "build/coverage.jsonl", help="one line for each class")
    parser.add_argument("--table", type=Path, default=ROOT / "docs/coverage.md", help="the page to write")
    parser.add_argument("--table-only", action="store_true", help="try nothing")
    parser.add_argument("--no-table", action="store_true", help="write no table")
    parser.add_argument("--fresh", action="store_true", help="discard earlier results")
    parser.add_argument("--limit", type=int, default=120, metavar="SECONDS", help="time limit for one class")
    return parser


def _read(results: Path) -> Iterator[Outcome]:
    for line in results.read_text().splitlines() if results.is_file() else ():
        yield Outcome(**json.loads(line))


def _in_a_process(name: str, model_class: type, config_class: type, limit_s: int) -> Outcome:
    """The outcome of one class. Its process is forked, so that it need not import transformers again."""
    start = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="zpp-coverage-"))
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(limit_s)
        os.close(ours)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        with os.fdopen(theirs, "w") as stream:
            json.dump(try_class(name, model_class, config_class, directory).as_json(), stream)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as stream:
        outcome_json = stream.read()
    os.waitpid(child, 0)
    shutil.rmtree(directory, ignore_errors=True)
    outcome = Outcome(**json.loads(outcome_json)) if outcome_json else Outcome(name, config_class.model_type)
    if not outcome_json:
        outcome.structure, outcome.reason = "not built", f"no outcome within {limit_s} s"
    outcome.seconds = round(time.monotonic() - start, 1)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
