# SPDX-License-Identifier: Apache-2.0
"""`zpptool validate PLAN`: can this plan work? Ranges, addresses, and the model where it lies on this machine."""

from __future__ import annotations

from pathlib import Path

import typer

from zpptool.console import Console
from zpptool.errors import ExitCode
from zpptool.plan import load_plan_file, plan_faults


def validate_plan(path: Path, model: Path | None, console: Console) -> None:
    """Print every reason why the plan cannot work, and leave with `INVALID` if there is one."""
    plan = load_plan_file(path)
    here = model or (Path(plan.model) if Path(plan.model).is_dir() else None)
    if here is None:
        console.note(f"note: {plan.model} is not on this machine; give --model DIR to look at the model too")
    faults = plan_faults(plan, here)
    payload = {
        "valid": not faults,
        "digest": plan.digest,
        "num_stages": len(plan.stages),
        "model_checked": here is not None,
        "faults": [{"message": fault} for fault in faults],
    }
    console.result(payload, lambda out: _show(out, len(plan.stages), faults))
    if faults:
        raise typer.Exit(ExitCode.INVALID)


def _show(out: Console, num_stages: int, faults: list[str]) -> None:
    for fault in faults:
        out.line(fault)
    out.line(f"invalid: {len(faults)} fault(s)" if faults else f"valid: a plan of {num_stages} stages")
