# SPDX-License-Identifier: Apache-2.0
"""`scripts/gpu_check.py`: which checks are run within a budget, what the report says, and on a CPU all that needs no
card."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("transformers")
sys.path.insert(0, str(ROOT / "scripts"))

from gpucheck import report
from gpucheck.check import Bench, Check, Failed, Machine, Refused, Verdict
from gpucheck.checks import CHECKS
from gpucheck.run import chosen, run_checks
from gpucheck.vllm_stages import refuse_if_refused
from page_part import replace_part

MARKERS = (report.BEGIN, report.END)
ONE_CARD = Machine("cuda", ("A card",), 80 << 30, "570.1", "2.14.0", "0.33.0", "0.1.0")
ON_CPU = Machine("cpu", (), 0, "", "2.13.0+cpu", "", "0.1.0")


def check(name: str, run: Callable[[Bench], dict[str, Any]], *, least_s: float = 10, cards: int = 0) -> Check:
    return Check(name, f"shows {name}", least_s, cards, False, run)


def run_all(checks: list[Check], machine: Machine, budget_s: float, steps_s: float = 5.0) -> dict[str, tuple[str, str]]:
    """Verdict and detail of each, on a clock on which every look takes `steps_s`."""
    ticks = itertools.count(0, steps_s)
    bench = Bench(machine, Path(), Path(), 0)
    return {
        outcome.name: (outcome.verdict.value, outcome.detail)
        for outcome in run_checks(checks, bench, budget_s, lambda: next(ticks))
    }


def test_what_there_is_no_time_for_is_left_out_by_name() -> None:
    limits: list[float] = []
    checks = [check(f"c{n}", lambda bench: limits.append(bench.limit_s) or {}, least_s=20) for n in range(3)]
    outcomes = run_all(checks, ON_CPU, budget_s=45)
    assert [verdict for verdict, _ in outcomes.values()] == ["passed", "passed", "skipped"]
    assert outcomes["c2"][1] == "no time: it takes about 20 s, 10 s of the budget are left"
    assert limits == [40, 25]


def test_a_check_that_fails_or_cannot_be_made_is_no_reason_to_end() -> None:
    def failing(_bench: Bench) -> dict[str, Any]:
        raise Failed("3 tokens differ")

    def breaking(_bench: Bench) -> dict[str, Any]:
        raise OSError("no such file")

    def refused(_bench: Bench) -> dict[str, Any]:
        refuse_if_refused("v2", 2, "error: VLLM_USE_V2_MODEL_RUNNER=1 is not supported\nunset it")
        return {}

    checks = [check("a", failing), check("b", breaking), check("c", refused), check("d", lambda _bench: {})]
    assert run_all([*checks, check("e", failing, cards=2)], ONE_CARD, 1000) == {
        "a": ("failed", "3 tokens differ"),
        "b": ("failed", "OSError('no such file')"),
        "c": ("skipped", "this build refuses the V2 runner: error: VLLM_USE_V2_MODEL_RUNNER=1 is not supported"),
        "d": ("passed", ""),
        "e": ("skipped", "needs 2 CUDA cards, this machine has 1"),
    }
    refuse_if_refused("v2", 4, "VLLM_USE_V2_MODEL_RUNNER")  # another exit code is no refusal
    with pytest.raises(Refused):
        refuse_if_refused("v2", 2, "VLLM_USE_V2_MODEL_RUNNER")


def test_names_choose_checks_and_an_unknown_one_is_refused() -> None:
    assert [one.name for one in chosen(CHECKS, ("embedded", "staging"))] == ["staging", "embedded-2", "embedded-3"]
    assert chosen(CHECKS, ()) == list(CHECKS)
    assert len({one.name for one in CHECKS}) == len(CHECKS)
    with pytest.raises(ValueError, match="there is no check 'vllm'; there are staging, "):
        chosen(CHECKS, ("vllm",))


def test_the_table_is_put_between_the_markers_of_the_page() -> None:
    bench = Bench(ONE_CARD, Path(), Path(), 0)
    checks = [check("a", lambda _bench: {"tokens_per_s": 12.5}), check("b", lambda _bench: {}, least_s=1e6)]
    made = report.Report("2026-12-01", ONE_CARD, "", 600, tuple(run_checks(checks, bench, 600)))
    table = report.as_table(made, checks)
    assert "1 x A card, driver 570.1; torch 2.14.0, vLLM 0.33.0" in table
    assert "| `a` | shows a | passed | tokens_per_s 12.5 |" in table
    page = (ROOT / "docs/compatibility.md").read_text()
    once = replace_part(page, table, *MARKERS)
    assert table in once
    assert replace_part(once, "none", *MARKERS) == replace_part(page, "none", *MARKERS)
    with pytest.raises(ValueError, match="has no <!-- gpu check: begin -->"):
        replace_part("no markers", table, *MARKERS)
    assert json.loads(report.as_json(made))["outcomes"][1]["verdict"] == "skipped"
    assert report.exit_code(made.outcomes) == 0
    assert report.exit_code([made.outcomes[0], made.outcomes[1].__class__("b", Verdict.FAILED, "", 0, {})]) == 1


@pytest.mark.timeout(300)
def test_on_a_cpu_all_that_needs_no_card_is_run(tmp_path: Path) -> None:
    words = ("--device", "cpu", "--budget", "5", "--only", "staging,embedded-2,parity-v1-eager", "--output", tmp_path)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/gpu_check.py", *words],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {one["name"]: one for one in json.loads((tmp_path / "gpu-check.json").read_text())["outcomes"]}
    assert {name: one["verdict"] for name, one in outcomes.items()} == {
        "staging": "passed", "embedded-2": "passed", "parity-v1-eager": "skipped",
    }  # fmt: skip
    assert outcomes["embedded-2"]["measures"]["tokens"] > 0
    assert outcomes["parity-v1-eager"]["detail"] == "needs a CUDA card; run with --device cuda"
    assert "2 of 3 checks were run" in done.stdout
    assert "| `embedded-2` | embedded engine, 2 stages on one card: unsplit tokens | passed |" in (
        (tmp_path / "gpu-check.md").read_text()
    )
