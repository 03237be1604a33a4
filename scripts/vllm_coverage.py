# SPDX-License-Identifier: Apache-2.0
"""Find out which model classes stock vLLM runs as a pipeline of two stages on a CPU, and record the outcomes.

    nice -n 10 python scripts/vllm_coverage.py              # all; continues where an earlier run was stopped
    python scripts/vllm_coverage.py --only LlamaForCausalLM,Qwen3ForCausalLM --results /tmp/some.jsonl
    python scripts/coverage_report.py --table-only          # afterwards: writes the page with the new column

Needs vllm, and for the classes that take images torchvision, of any build (a directory on PYTHONPATH is enough; for
Gemma3nForConditionalGeneration timm too). vllm is imported once; each class is tried in forks of that process, each
with a time limit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ.update(
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1", VLLM_PLUGINS="",
)  # fmt: skip

import torch
import transformers

try:
    import torchvision
except ModuleNotFoundError:
    pass
except RuntimeError:  # built for another torch: declare its operators, which text prompts never call
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

import vllm
from families.case import model_classes
from families.vllm_case import try_on_vllm
from families.vllm_outcome import RESULTS, VERDICTS, WRONG, read_outcomes, write_outcomes
from vllm.model_executor.models import registry


def main() -> int:
    """Try the classes, and print and record a line for each. Returns 1 if a pipeline is wrong."""
    options = _parser().parse_args()
    only = list(dict.fromkeys(options.only.split(","))) if options.only else None
    # vLLM inspects a class in a new process, which would import everything again; here every fork is such a process.
    registry._run_in_subprocess = lambda ask: ask()
    done = {} if options.fresh else read_outcomes(options.results)
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in (vllm, transformers, torch))
    classes = model_classes(only)
    tried = sorted(only or classes, key=lambda name: name not in registry.ModelRegistry.models)  # vLLM's own first
    for name in tried:
        if name in done and done[name].verdict not in options.again:
            continue
        model_class, config_class = classes[name]
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="zpp-", ignore_cleanup_errors=True) as work:
            outcome = try_on_vllm(name, model_class, config_class, Path(work), options.limit)
        outcome.seconds = round(time.monotonic() - start, 1)
        outcome.date, outcome.versions = datetime.now(UTC).date().isoformat(), versions
        done[name] = outcome
        write_outcomes(done, options.results)
        print(f"{name}: {outcome.verdict} {outcome.runs_as} {outcome.reason}".strip(), flush=True)
    wrong = [name for name in tried if done[name].verdict in WRONG]
    for name in wrong:
        print(f"wrong: {name}: {done[name].reason}", file=sys.stderr)
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", help="class names, with commas between")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file with one line for each class")
    parser.add_argument("--again", nargs="+", choices=VERDICTS, default=(), help="repeat classes with this outcome")
    parser.add_argument("--fresh", action="store_true", help="discard earlier results")
    parser.add_argument("--limit", type=int, default=90, metavar="SECONDS", help="for each process of a class")
    return parser


if __name__ == "__main__":
    sys.exit(main())
