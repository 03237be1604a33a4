# SPDX-License-Identifier: Apache-2.0
"""Find out which model classes of the installed transformers can be split and run, and write docs/coverage.md.

    python scripts/coverage_report.py                       # all; continues where an earlier run was stopped
    python scripts/coverage_report.py --only LlamaForCausalLM,GPT2LMHeadModel
    python scripts/coverage_report.py --table-only          # from the records

Images need a torchvision that imports; the tests' own will do:
PYTHONPATH=.:tests/torchvision_parts:.cache/torchvision-0.28.0. Without one, classes are run with text alone.

Each class is tried in a process of its own, with a time limit, and its outcome is one line of the results file. At the
end the outcomes replace those in the record of this release of transformers (docs/coverage-transformers-VERSION.jsonl),
what has changed there is printed, and the table is made from the records of all releases.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from families import vllm_outcome
from families.case import Outcome, model_classes, try_class
from families.record import RECORDS, ROOT, Record, read_outcomes, read_records, record_path, update_record
from families.table import coverage_table

RELEASE = version("transformers")


def main() -> int:
    """Try the classes, print a line for each, and write the record and the table. Returns 1 if anything is wrong."""
    options = _parser().parse_args()
    only = set(options.only.split(",")) if options.only else None
    done = {} if options.table_only else _try(options, only)
    outcomes = [done[name] for name in sorted(done) if only is None or name in only]
    if not options.no_table:
        _write(options, outcomes)
        if not only and not options.table_only:
            options.results.unlink()  # the run is complete, and the next one begins again
    bad = [
        outcome
        for outcome in outcomes
        if "wrong" in outcome.structure or "different" in (outcome.embedded, outcome.images)
    ]
    for outcome in bad:
        print(f"wrong: {outcome.name}: {outcome.reason}", file=sys.stderr)
    return 1 if bad else 0


def _try(options: argparse.Namespace, only: set[str] | None) -> Record:
    """The outcomes of an earlier run that was stopped, and of the classes that it did not try."""
    options.results.parent.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        options.results.unlink(missing_ok=True)
    done = read_outcomes(options.results)
    for name, (model_class, config_class) in model_classes(only).items():
        if name not in done:
            done[name] = _in_a_process(name, model_class, config_class, options.limit)
            with options.results.open("a") as stream:
                stream.write(json.dumps(done[name].as_json()) + "\n")
            print(f"{name}: {done[name].structure} {done[name].embedded} {done[name].reason}".strip(), flush=True)
    return done


def _write(options: argparse.Namespace, outcomes: list[Outcome]) -> None:
    for change in update_record(record_path(options.records, RELEASE), outcomes) if outcomes else ():
        print(f"changed with transformers {RELEASE}: {change}")
    options.table.write_text(coverage_table(read_records(options.records), vllm_outcome.read_outcomes()))
    print(f"wrote {options.table}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    results = ROOT / f"build/coverage-{RELEASE}.jsonl"
    parser.add_argument("--only", help="class names, with commas between")
    parser.add_argument("--results", type=Path, default=results, help="one line for each class")
    parser.add_argument("--records", type=Path, default=RECORDS, help="the directory with the record of each release")
    parser.add_argument("--table", type=Path, default=ROOT / "docs/coverage.md", help="the page to write")
    parser.add_argument("--table-only", action="store_true", help="try nothing")
    parser.add_argument("--no-table", action="store_true", help="write neither the record nor the table")
    parser.add_argument("--fresh", action="store_true", help="discard earlier results")
    parser.add_argument("--limit", type=int, default=120, metavar="SECONDS", help="time limit for one class")
    return parser


def _in_a_process(name: str, model_class: type, config_class: type, limit_s: int) -> Outcome:
    """The outcome of one class. Its process is forked, so that it need not import transformers again."""
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
    outcome.date = f"{datetime.now(UTC):%Y-%m-%d}"
    return outcome


if __name__ == "__main__":
    sys.exit(main())
